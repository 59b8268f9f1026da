/* Stands in for the CUDA driver: answers as an H200 does, loads any cubin, computes nothing. */
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_IMAGE = 200 };

int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 10: *value = 32; break;      /* threads of a warp */
        case 12: *value = 65536; break;   /* registers of a block */
        case 13: *value = 1980000; break; /* kHz */
        case 16: *value = 132; break;     /* multiprocessors */
        case 75: *value = 9; break;       /* compute capability */
        case 97: *value = 232448; break;  /* bytes of shared memory that a block may ask for */
        default: *value = 0;
    }
    return SUCCESS;
}

int cuCtxGetCurrent(void **context) { *context = (void *)1; return SUCCESS; }

int cuModuleLoadData(void **module, const char *image) {
    *module = (void *)1;
    return memcmp(image, "\177ELF", 4) ? INVALID_IMAGE : SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return SUCCESS; }

int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 0 ? 1024 : 0; /* threads of a block */
    return SUCCESS;
}

int cuPointerGetAttribute(uint64_t *value, int attribute, uint64_t pointer) { *value = pointer; return SUCCESS; }

int cuGetErrorString(int code, const char **text) { *text = "refused by the stand-in driver"; return SUCCESS; }

int cuLaunchKernelEx(const void *config, void *function, void **parameters, void **extra) { return SUCCESS; }
