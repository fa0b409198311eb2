// The highest rate of mma.sync, alone and beside other work. Every warp keeps eight products in flight.
#define PRODUCT(SHAPE, c, a, b) \
    asm volatile("mma.sync.aligned." SHAPE " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

#define RATE(NAME, SHAPE, CHAINS, SPECIAL, FMAS) \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME(float* out, int count) { \
        float c[CHAINS][4] = {}, e[4], f[4]; \
        unsigned a[4], b[2]; \
        for (int i = 0; i < 4; ++i) a[i] = 0x3c003c00u + threadIdx.x * i, e[i] = -0.1f * i, f[i] = 1e-3f * threadIdx.x; \
        b[0] = 0x2c002c00u + threadIdx.x, b[1] = b[0] ^ 1; \
        for (int n = 0; n < count; ++n) { \
            _Pragma("unroll") for (int i = 0; i < CHAINS; ++i) PRODUCT(SHAPE, c[i], a, b); \
            _Pragma("unroll") for (int i = 0; i < SPECIAL; ++i) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(e[i % 4])); \
            _Pragma("unroll") for (int i = 0; i < FMAS; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(f[i % 4])); \
        } \
        float sum = 0; \
        for (int i = 0; i < CHAINS; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3]; \
        for (int i = 0; i < 4; ++i) sum += e[i] + f[i]; \
        if (sum == 123.456f) out[0] = sum; \
    }

RATE(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32", 8, 0, 0)
RATE(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", 8, 0, 0)
RATE(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", 8, 0, 0)
// The mix of step 3 in 16 bits with 128 columns: 8 products, 3 exponentials and about 23 other instructions.
RATE(mma_fp16_ex2, "m16n8k16.row.col.f32.f16.f16.f32", 8, 3, 0)
RATE(mma_fp16_ex2_fma, "m16n8k16.row.col.f32.f16.f16.f32", 8, 3, 23)
RATE(mma_fp16_fma, "m16n8k16.row.col.f32.f16.f16.f32", 8, 0, 32)
