/* Scores rows with a ranker that burnish compiled, from C alone: no Python, no burnish.
 *
 *   cc -O2 -I<where ranker.h is> score.c -o score -ldl
 *   ./score ARTIFACT ROWS BYTES_OF_SCORES INPUT.bin ... > scores.bin
 *
 * ARTIFACT is a directory made by `burnish compile` for the native backend. Each INPUT.bin holds ROWS rows of one input, in the order in
 * which ranker_describe() lists them; the scores of the first output are written as they are, BYTES_OF_SCORES for each row.
 */
#include "ranker.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *read_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) { perror(path); exit(2); }
  fseek(file, 0, SEEK_END);
  long bytes = ftell(file);
  rewind(file);
  void *content = malloc(bytes ? (size_t)bytes : 1);
  if (!content || fread(content, 1, (size_t)bytes, file) != (size_t)bytes) { perror(path); exit(2); }
  fclose(file);
  return content;
}

int main(int argc, char **argv) {
  if (argc < 4) { fprintf(stderr, "usage: %s ARTIFACT ROWS BYTES_OF_SCORES INPUT.bin ...\n", argv[0]); return 2; }
  char program[4096], weights[4096];
  snprintf(program, sizeof program, "%s/program/native/ranker.so", argv[1]);
  snprintf(weights, sizeof weights, "%s/weights.bin", argv[1]);
  void *library = dlopen(program, RTLD_NOW);
  if (!library) { fprintf(stderr, "%s\n", dlerror()); return 2; }
  int (*abi)(void) = (int (*)(void))dlsym(library, "ranker_abi");
  const char *(*describe)(void) = (const char *(*)(void))dlsym(library, "ranker_describe");
  ranker *(*open_ranker)(const char *, int *) = (ranker * (*)(const char *, int *)) dlsym(library, "ranker_open");
  int (*score)(ranker *, int64_t, const void *const *, void *const *) =
      (int (*)(ranker *, int64_t, const void *const *, void *const *))dlsym(library, "ranker_rows");
  const ranker_fault_t *(*fault)(const ranker *) = (const ranker_fault_t *(*)(const ranker *))dlsym(library, "ranker_fault");
  void (*close_ranker)(ranker *) = (void (*)(ranker *))dlsym(library, "ranker_close");
  if (!abi || abi() != RANKER_ABI) { fprintf(stderr, "%s is not a ranker of version %d\n", program, RANKER_ABI); return 2; }
  fprintf(stderr, "%s\n", describe());

  int error;
  ranker *handle = open_ranker(weights, &error);
  if (!handle) { fprintf(stderr, "%s: error %d\n", weights, error); return 2; }
  const int64_t rows = atoll(argv[2]);
  const size_t bytes = (size_t)atoll(argv[3]);
  const int inputs = argc - 4;
  const void **given = (const void **)calloc((size_t)inputs + 1, sizeof *given);
  for (int i = 0; i < inputs; i++) given[i] = read_file(argv[4 + i]);
  void *scores = malloc((size_t)rows * bytes + 1);
  int failed = score(handle, rows, given, &scores);
  if (failed) {
    const ranker_fault_t *why = fault(handle);
    fprintf(stderr, "row %lld has an id outside its table: error %d\n", (long long)why->row, why->what);
  } else {
    fwrite(scores, bytes, (size_t)rows, stdout);
  }
  for (int i = 0; i < inputs; i++) free((void *)given[i]);
  free(given);
  free(scores);
  close_ranker(handle);
  dlclose(library);
  return failed ? 1 : 0;
}
