// What the fake driver runs where a test launches `blend`: to[i] = by * from[i] + add, i < count.
extern "C" const int blend_sizes[] = {8, 8, 4, 8, 4, 0};
extern "C" void blend(void** given, const unsigned* grid, unsigned block, unsigned) {
    float* to = *static_cast<float**>(given[0]);
    const float* from = *static_cast<float**>(given[1]);
    const float by = *static_cast<float*>(given[2]);
    const double add = *static_cast<double*>(given[3]);
    const int count = *static_cast<int*>(given[4]);
    for (unsigned i = 0; i < grid[0] * grid[1] * grid[2] * block; ++i)
        if (int(i) < count) to[i] = float(by * from[i] + add);
}
