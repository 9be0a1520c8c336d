/* A row of a plan on the CPU in one pass over memory: what `step.advance_` and `step.mix` do, bit for bit.

       d  = p x + q out                                              into slot (i mod K) of the ring, where d is kept
       x' = a x + w out + sum_{j<K} b_j d_{i-j} + c z                in place

   Row i of the table, float64: kept, p, q, a, w, c, b_0 .. b_{K-1}; each is cast once to the state's type. What has
   weight 0 is not read, so no row reads a d that is not there yet. The order is the one above, and each term is one
   fused multiply-add where the machine has it, as aten's are, else a product and a sum, each rounded: no bit depends on
   where in the batch a sample is. A block of the state stays in the first cache from its first term to its last. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum { KEPT, P, Q, A, W, C, B };
enum { LAYOUT = 2 }; /* of the table and of row's arguments: as step.LAYOUT, raised with every change of either */
enum { BLOCK = 1024, HOLD = 1 << 14 }; /* below HOLD numbers giving the interpreter up costs more than it frees */

#ifdef _MSC_VER
#define restrict __restrict
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__FMA__)
#define DISPATCHES 1
#define WITH_FMA __attribute__((target("avx2,fma")))
#endif

#define FUSED32(w, y, x) __builtin_fmaf(w, y, x)
#define FUSED64(w, y, x) __builtin_fma(w, y, x)
#define ROUNDED(w, y, x) ((w) * (y) + (x)) /* contraction is off, see pyproject.toml */

#define ADD(weight, tensor, Real, FMA)                                                                                 \
    if ((weight) != 0) {                                                                                               \
        const Real w = (Real)(weight), *restrict y = (const Real *)(tensor) + start;                                   \
        for (size_t k = 0; k < n; k++) here[k] = FMA(w, y[k], here[k]);                                                \
    }

#define ADVANCE(name, TARGET, Real, FMA)                                                                               \
    TARGET static void name(void *x, const void *out, void *ring, const void *z, const double *row, size_t size,       \
                            size_t depth, size_t i)                                                                    \
    {                                                                                                                  \
        const Real a = (Real)row[A], p = (Real)row[P], q = (Real)row[Q];                                               \
        for (size_t start = 0; start < size; start += BLOCK) {                                                         \
            const size_t n = size - start < BLOCK ? size - start : BLOCK;                                              \
            Real *restrict here = (Real *)x + start;                                                                   \
            if (row[KEPT] != 0) {                                                                                      \
                Real *restrict d = (Real *)ring + (i % depth) * size + start;                                          \
                const Real *restrict y = (const Real *)out + start;                                                    \
                for (size_t k = 0; k < n; k++) d[k] = q * y[k];                                                        \
                if (p != 0)                                                                                            \
                    for (size_t k = 0; k < n; k++) d[k] = FMA(p, here[k], d[k]);                                       \
            }                                                                                                          \
            if (a != 1)                                                                                                \
                for (size_t k = 0; k < n; k++) here[k] *= a;                                                           \
            ADD(row[W], out, Real, FMA)                                                                                \
            for (size_t j = 0; j < depth; j++)                                                                         \
                ADD(row[B + j], (Real *)ring + ((i + depth - j) % depth) * size, Real, FMA)                            \
            ADD(row[C], z, Real, FMA)                                                                                  \
        }                                                                                                              \
    }

typedef void Advance(void *, const void *, void *, const void *, const double *, size_t, size_t, size_t);

#ifdef __FP_FAST_FMAF
ADVANCE(plain32, , float, FUSED32)
ADVANCE(plain64, , double, FUSED64)
#else
ADVANCE(plain32, , float, ROUNDED)
ADVANCE(plain64, , double, ROUNDED)
#endif
static Advance *advance32 = plain32, *advance64 = plain64;
static const char *instructions = "the compiler's baseline";

#ifdef DISPATCHES
ADVANCE(fused32, WITH_FMA, float, FUSED32)
ADVANCE(fused64, WITH_FMA, double, FUSED64)

static void dispatch(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        advance32 = fused32, advance64 = fused64, instructions = "AVX2 and FMA";
}
#else
static void dispatch(void) {}
#endif

static PyObject *row(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 10) return PyErr_Format(PyExc_TypeError, "row takes 10 arguments, got %zd", count);
    void *at[5];
    for (int k = 0; k < 5; k++) at[k] = PyLong_AsVoidPtr(args[k]);
    const size_t size = PyLong_AsSize_t(args[5]), depth = PyLong_AsSize_t(args[6]);
    const size_t i = PyLong_AsSize_t(args[7]), rows = PyLong_AsSize_t(args[8]);
    const long width = PyLong_AsLong(args[9]);
    if (PyErr_Occurred()) return NULL;
    if (width != sizeof(float) && width != sizeof(double))
        return PyErr_Format(PyExc_ValueError, "row takes states of 4 or 8 bytes a number, not %ld", width);
    if (i >= rows)
        return PyErr_Format(PyExc_IndexError, "i = %zu, but the table has %zu rows: i counts them from 0", i, rows);
    Advance *run = width == sizeof(float) ? advance32 : advance64;
    const double *table = (const double *)at[4] + i * (B + depth);
    if (size < HOLD) {
        run(at[0], at[1], at[2], at[3], table, size, depth, i);
    } else {
        Py_BEGIN_ALLOW_THREADS
        run(at[0], at[1], at[2], at[3], table, size, depth, i);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"row", (PyCFunction)(void (*)(void))row, METH_FASTCALL,
     "row(x, out, ring, z, table, size, depth, i, rows, width): row i of `rows` on the state at address x, in place.\n\n"
     "Addresses are of contiguous memory, 0 where the row reads none; width: bytes a number, 4 or 8."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    dispatch();
    if (PyModule_AddIntConstant(module, "LAYOUT", LAYOUT) < 0) return -1;
    return PyModule_AddStringConstant(module, "INSTRUCTIONS", instructions);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "odediff._row", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__row(void) { return PyModuleDef_Init(&definition); }
