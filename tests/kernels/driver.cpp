// A kernel under a sanitizer: all three entry points, with every kind of incomplete tile, in memory of the exact size.
// Built with -include host.hpp and -DMDMF_SOURCE="<the .cu file>".
#include MDMF_SOURCE

#include <cstdio>
#include <cstdlib>
#include <random>

namespace {

// Step 4's blocks share a list, in one row of a grid. Its stages have barriers.
template <typename T>
concept WithBarriers = requires(T shared) { shared.full; };
constexpr bool LISTED = WithBarriers<Shared>;

template <typename... Parameters, typename... Arguments>
void launch(dim3 grid, int block, std::size_t shared, void (*kernel)(Parameters...), Arguments... arguments) {
    host::machine.run(grid, block, shared, false, [=] { kernel(arguments...); });
}

unsigned blocks(int count, int each) { return unsigned((count + each - 1) / each); }

// Memory that ends with its last number, aligned to 16 bytes (a GPU aligns to 256).
template <typename T> std::vector<T> numbers(std::size_t count, T value) { return std::vector<T>(count, value); }

// Print the last image's score, with early copies and with late ones. Only the cross term has any.
void score(int images, int patches, int tiles, int slices, int shares) {
    const int rows = images * patches, bank_rows = tiles * TILE;
    std::mt19937 random(unsigned(rows + tiles));
    std::normal_distribution<float> normal(0.0f, 0.1f);
    auto x = numbers(std::size_t(rows) * WIDTH, 0.0f), points = numbers(std::size_t(bank_rows) * WIDTH, 0.0f);
    for (float& value : x) value = normal(random);
    for (float& value : points) value = normal(random);
    const auto centre = numbers(WIDTH, 0.0f), weights = numbers(bank_rows, 1.0f);
    auto operands = numbers(x.size() * PARTS, Operand()), bank = numbers(points.size() * PARTS, Operand());
    auto norms = numbers(rows, 0.0f), bank_norms = numbers(bank_rows, 0.0f), within = norms;
    auto partial = numbers(std::size_t(slices) * rows, 0.0f);
    auto contributions = numbers(rows, 0.0), mmd2 = numbers(images, 0.0);
    for (int row = 0; row < bank_rows; ++row) {
        for (int k = 0; k < WIDTH; ++k) {
            const float value = store_value(bank.data() + row * ROW_OPERANDS, k, points[row * WIDTH + k]);
            // Step 4 reads what is left of a norm: here nothing in the longest bank, all in the others.
            bank_norms[row] += LISTED && tiles == 5 ? 0.0f : value * value / 2;
        }
    }
    launch({unsigned(images), blocks(patches, PREPARED_ROWS)}, PREPARE_THREADS, 0, mdmf_prepare, x.data(),
           centre.data(), 1.0f, patches, operands.data(), norms.data(), within.data());
    const std::size_t shared = std::is_empty_v<Shared> ? 0 : sizeof(Shared);
    for (const bool late : {false, true}) {
        host::late = late;
        launch({blocks(rows, ROWS), LISTED ? 1 : unsigned(shares)}, THREADS, shared, mdmf_cross, operands.data(),
               norms.data(), bank.data(), bank_norms.data(), weights.data(), rows, bank_rows, slices, partial.data());
        launch({unsigned(images)}, FINISH_THREADS, 0, mdmf_finish, partial.data(), within.data(), slices, images,
               patches, 1.0f / float(bank_rows), 1.0, contributions.data(), mmd2.data());
        std::printf("%g\n", mmd2.back());
    }
}

}  // namespace

// Arguments: the planted fault that is on (0 for none), and 1 to leave out the largest grid.
int main(int, char** given) {
    host::fault = std::atoi(given[1]);
    score(1, 1, 1, 1, 1);
    score(3, 33, 5, 2, 1);
    if (std::atoi(given[2]) == 0) score(ROWS / 70 + 1, 70, 4, 3, 2);
}
