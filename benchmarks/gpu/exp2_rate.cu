// How many exponentials a second: every thread takes 4 chains of ex2.approx, `count` long each.
extern "C" __global__ void exp2_rate(float* out, int count) {
    float chains[4];
    for (int i = 0; i < 4; ++i) chains[i] = -0.25f * i - 1e-3f * threadIdx.x;
    for (int n = 0; n < count; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(chains[i]));
    }
    // Never so, but the compiler cannot know.
    if (chains[0] + chains[1] + chains[2] + chains[3] > 1e30f) out[0] = 1.0f;
}
