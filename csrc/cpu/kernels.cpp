// The choice of an instruction set.

#include "kernels.h"

#include <cstdlib>
#include <string_view>

namespace comer_d2::cpu {
namespace {

const Kernels* choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq");
  const struct {
    const Kernels* kernels;
    bool supported;
  } known[] = {{&kAvx512Kernels, avx512}, {&kAvx2Kernels, avx2}, {&kBaselineKernels, true}};
#else
  const struct {
    const Kernels* kernels;
    bool supported;
  } known[] = {{&kBaselineKernels, true}};
#endif
  const char* wanted = std::getenv("COMER_D2_CPU_CAPABILITY");
  std::string names;
  for (const auto& candidate : known) {
    if (!candidate.supported) {
      continue;
    }
    if (wanted == nullptr || *wanted == '\0' || std::string_view(wanted) == candidate.kernels->name) {
      return candidate.kernels;
    }
    names += std::string(names.empty() ? "" : ", ") + candidate.kernels->name;
  }
  COMER_D2_CHECK(
      false, "COMER_D2_CPU_CAPABILITY must be one of ", names, " on this machine, got ", wanted);
}

} // namespace

const Kernels& kernels() {
  static const Kernels* chosen = choose();
  return *chosen;
}

const char* capability_name() {
  return kernels().name;
}

} // namespace comer_d2::cpu
