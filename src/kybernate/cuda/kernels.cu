// Kernels of the agent, compiled at run time for the GPU at hand.
// The hash's definition, and why it is shaped so, stand in hashing.py, whose numpy twin must agree bit for bit.

typedef unsigned long long u64;

#define LANES 512u      // threads of a block, one hash lane each
#define WORDS 131072u   // 16-byte words of a 2 MiB chunk
#define STEPS (WORDS / LANES)
#define UNROLL 8

__device__ __forceinline__ u64 scramble(u64 x)  // a bijection: every input bit reaches every output bit
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

__device__ __forceinline__ u64 fold(u64 x, u64 y)  // both halves of the product, and the factors in case one is zero
{
    return (x * y) ^ __umul64hi(x, y) ^ x ^ y;
}

extern "C" __global__ void __launch_bounds__(LANES)
kybernate_hash_chunks(const u64 *__restrict__ bases, u64 key0, u64 key1, ulonglong2 *__restrict__ out, unsigned count)
{
    const unsigned chunk = blockIdx.x, lane = threadIdx.x;
    if (chunk >= count) return;
    const ulonglong2 *words = reinterpret_cast<const ulonglong2 *>(bases[chunk]) + lane;

    const u64 p = scramble(key0 + lane * 0x9e3779b97f4a7c15ull);
    const u64 q = scramble(key1 + lane * 0xd1b54a32d192ed03ull);
    u64 s = scramble(p ^ key1), t = scramble(q ^ key0), any = 0;

#pragma unroll 1
    for (unsigned step = 0; step < STEPS; step += UNROLL) {
        ulonglong2 word[UNROLL];
#pragma unroll
        for (unsigned i = 0; i < UNROLL; i++) word[i] = __ldcs(words + (step + i) * LANES);
#pragma unroll
        for (unsigned i = 0; i < UNROLL; i++) {
            any |= word[i].x | word[i].y;
            s = fold(word[i].x ^ p, word[i].y ^ s);
            t = fold(word[i].y ^ q, word[i].x ^ t);
        }
    }

    s = scramble(s ^ q);
    t = scramble(t ^ p);
    __shared__ u64 parts[3][LANES / 32];
    for (unsigned distance = 16; distance; distance >>= 1) {
        s += __shfl_down_sync(~0u, s, distance);
        t += __shfl_down_sync(~0u, t, distance);
        any |= __shfl_down_sync(~0u, any, distance);
    }
    if (lane % 32 == 0) {
        parts[0][lane / 32] = s;
        parts[1][lane / 32] = t;
        parts[2][lane / 32] = any;
    }
    __syncthreads();
    if (lane) return;
    for (unsigned i = 1; i < LANES / 32; i++) {
        s += parts[0][i];
        t += parts[1][i];
        any |= parts[2][i];
    }
    s = scramble(s ^ key0);
    t = scramble(t ^ key1);
    if (!any) s = t = 0;
    else if (!(s | t)) t = 1;
    out[chunk] = make_ulonglong2(s, t);
}

// For benchmarks and tests: memory with known content. Words are 32 bits. The simulated driver has the same ones.

#define FOR_EACH_WORD(i, words) \
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (words); i += (u64)gridDim.x * blockDim.x)

extern "C" __global__ void fill_u32(unsigned *words, u64 count, unsigned seed)
{
    FOR_EACH_WORD(i, count) {
        unsigned x = (unsigned)i * 0x9e3779b9u + seed;
        x = (x ^ x >> 16) * 0x85ebca6bu;
        x = (x ^ x >> 13) * 0xc2b2ae35u;
        words[i] = x ^ x >> 16;
    }
}

extern "C" __global__ void add_one_u32(unsigned *words, u64 count)
{
    FOR_EACH_WORD(i, count) words[i] += 1;
}

// *sum must be zero before.
extern "C" __global__ void sum_u32(const unsigned *words, u64 count, u64 *sum)
{
    u64 mine = 0;
    FOR_EACH_WORD(i, count) mine += words[i];
    for (unsigned distance = 16; distance; distance >>= 1) mine += __shfl_down_sync(~0u, mine, distance);
    if (threadIdx.x % 32 == 0) atomicAdd(sum, mine);
}

// Runs until somebody writes to *flag.
extern "C" __global__ void spin(const volatile unsigned *flag)
{
    while (!*flag) __nanosleep(1000);
}
