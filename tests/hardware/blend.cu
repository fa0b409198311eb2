// to[i] = by * from[i] + add, i < count
extern "C" __global__ void blend(float* to, const float* from, float by, double add, int count) {
    const int i = (blockIdx.z * gridDim.y * gridDim.x + blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = float(by * from[i] + add);
}
