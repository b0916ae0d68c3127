/* The C face of a ranker that burnish compiled. Version 1.
 *
 * A ranker is opened from its packed weights (weights.bin of the artifact), scores rows, and is closed. A handle belongs to one thread at a
 * time; open one a thread: the weights are mapped read-only and shared, only the arena (ranker_arena_bytes) is each handle's own. Scoring
 * allocates nothing and takes no lock. The same row gets the same bits in any call.
 *
 * Arrays are dense, row-major, in the machine's byte order: float, double, int64_t, int32_t, or uint8_t for bool (0 and 1). Their order,
 * names, types and shapes are in ranker_describe(), a JSON text.
 */
#ifndef BURNISH_RANKER_H
#define BURNISH_RANKER_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define RANKER_ABI 1

enum {
  RANKER_OK = 0,
  RANKER_BAD_ID = 1,      /* an id that its table does not have: see ranker_fault */
  RANKER_BAD_INPUT = 2,   /* an id beyond the bound that its input declares: see ranker_fault */
  RANKER_CANNOT_OPEN = 3, /* no such file, or it cannot be mapped */
  RANKER_NOT_ITS_WEIGHTS = 4, /* the file was packed for another program, or is cut short */
  RANKER_NO_MEMORY = 5,
  RANKER_LACKS_INSTRUCTIONS = 6 /* the CPU: see ranker_lacks */
};

typedef struct ranker ranker;

/* What was wrong in the last call that did not return RANKER_OK. */
typedef struct {
  int32_t what;  /* RANKER_BAD_ID or RANKER_BAD_INPUT */
  int32_t where; /* the number of the table among the packed arrays, or of the input's half */
  int64_t row;   /* the row of the call's candidates (of its requests, for what is the request's) */
  int64_t id;    /* the id (RANKER_BAD_ID) */
} ranker_fault_t;

int ranker_abi(void);                 /* RANKER_ABI of the library */
const char *ranker_describe(void);    /* JSON: inputs, outputs, instruction set, rows of a block */
size_t ranker_arena_bytes(void);
const char *ranker_lacks(void);       /* null, or a CPU flag (as in /proc/cpuinfo) that the library needs and this machine lacks */

/* Maps the packed weights; null on failure, with one of the codes above in *error (which may be null). */
ranker *ranker_open(const char *weights, int *error);
/* The same over weights.bin in memory, as from flash or the network: aligned to 64 bytes, unchanged until ranker_close. */
ranker *ranker_open_memory(const void *weights, size_t bytes, int *error);
void ranker_close(ranker *handle);

/* A plain table. inputs: one array an input, n rows each. outputs: one array an output, room for n rows each. */
int ranker_rows(ranker *handle, int64_t n, const void *const *inputs, void *const *outputs);

/* Requests with their candidates. inputs: one array a half of an input (request half before candidate half, inputs in order); request halves have
 * `requests` rows, candidate halves offsets[requests] rows, of which offsets[i] .. offsets[i + 1] belong to request i. outputs: one row a candidate. */
int ranker_requests(ranker *handle, int64_t requests, const int64_t *offsets, const void *const *inputs, void *const *outputs);

const ranker_fault_t *ranker_fault(const ranker *handle);

#ifdef __cplusplus
}
#endif
#endif
