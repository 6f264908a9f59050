// Runs the Python functions of a file as RTAB-Map runs its detector and matcher: an interpreter without sys.argv in a C++
// process, calls from threads that take the GIL, images in memory that is gone after the call. Whatever would end RTAB-Map
// (an exception, an array of another type or shape) ends this program with exit code 1.
//
//   rtabmap_host FILE.py detect IMAGE WIDTH HEIGHT   keypoints and descriptors of raw gray bytes, as text; four calls, two threads
//   rtabmap_host FILE.py detect-wrong                images that are none
//   rtabmap_host FILE.py extract IMAGE WIDTH HEIGHT  the global descriptor of raw gray bytes, as text; then images that are none
//   rtabmap_host FILE.py match COUNT SIZE            COUNT descriptors of SIZE numbers against the same in reverse order
//   rtabmap_host FILE.py match-wrong SIZE            descriptors that cannot be matched

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace
{

[[noreturn]] void fail(const std::string & what)
{
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  if (PyErr_Occurred()) {
    PyErr_Print();
  }
  std::_Exit(1);
}

void require(bool holds, const std::string & what)
{
  if (!holds) {
    fail(what);
  }
}

PyArrayObject * as_matrix(PyObject * object, const std::string & name)
{
  require(object != nullptr, name + ": an exception");
  require(PyArray_Check(object) != 0, name + ": not an array");
  auto array = reinterpret_cast<PyArrayObject *>(object);
  require(PyArray_NDIM(array) == 2, name + ": not of two dimensions");
  require(PyArray_IS_C_CONTIGUOUS(array) != 0, name + ": not contiguous");
  return array;
}

struct Gil
{
  PyGILState_STATE state = PyGILState_Ensure();
  ~Gil() { PyGILState_Release(state); }
};

PyObject * function(PyObject * module, const char * name)
{
  PyObject * found = PyObject_GetAttrString(module, name);
  require(found != nullptr && PyCallable_Check(found), std::string(name) + ": no such function");
  return found;
}

void require_result(PyObject * result)
{
  require(result != nullptr, "init: an exception");
  Py_DECREF(result);
}

// Calls detect and checks what RTAB-Map checks, or takes for granted; returns how many keypoints there are.
npy_intp detect(PyObject * module, PyObject * image, bool print)
{
  PyObject * result = PyObject_CallFunctionObjArgs(function(module, "detect"), image, nullptr);
  require(result != nullptr, "detect: an exception");
  require(PyTuple_Check(result) && PyTuple_GET_SIZE(result) == 2, "detect: not a tuple of two");
  auto keypoints = as_matrix(PyTuple_GET_ITEM(result, 0), "keypoints");
  auto descriptors = as_matrix(PyTuple_GET_ITEM(result, 1), "descriptors");
  const npy_intp count = PyArray_DIM(keypoints, 0), size = PyArray_DIM(descriptors, 1);
  require(PyArray_DIM(keypoints, 1) == 3, "keypoints: not (N, 3)");
  require(PyArray_TYPE(keypoints) == NPY_FLOAT, "keypoints: not float32");
  require(PyArray_TYPE(descriptors) == NPY_FLOAT, "descriptors: not float32");
  require(PyArray_DIM(descriptors, 0) == count && size > 0, "descriptors: not (N, D)");
  auto numbers = static_cast<const float *>(PyArray_DATA(keypoints));
  auto rows = static_cast<const float *>(PyArray_DATA(descriptors));
  for (npy_intp i = 0; print && i < count; ++i) {
    for (npy_intp j = 0; j < 3; ++j) {
      std::printf("%.9g ", static_cast<double>(numbers[i * 3 + j]));
    }
    for (npy_intp j = 0; j < size; ++j) {
      std::printf("%.9g ", static_cast<double>(rows[i * size + j]));
    }
    std::printf("\n");
  }
  Py_DECREF(result);
  return count;
}

// Wraps an image in memory of its own, calls detect, and destroys the memory.
npy_intp detect_copy(PyObject * module, const std::vector<unsigned char> & pixels, npy_intp width, npy_intp height, bool print)
{
  Gil gil;
  auto memory = static_cast<unsigned char *>(std::malloc(pixels.size()));
  std::memcpy(memory, pixels.data(), pixels.size());
  npy_intp shape[] = {height, width};
  PyObject * image = PyArray_SimpleNewFromData(2, shape, NPY_UBYTE, memory);
  const npy_intp count = detect(module, image, print);
  require(Py_REFCNT(image) == 1, "detect: it keeps the image");
  Py_DECREF(image);
  std::memset(memory, 0xAA, pixels.size());
  std::free(memory);
  return count;
}

void detect_images(PyObject * module, char ** arguments)
{
  std::ifstream file(arguments[0], std::ios::binary);
  const std::vector<unsigned char> pixels{std::istreambuf_iterator<char>(file), {}};
  const npy_intp width = std::atol(arguments[1]), height = std::atol(arguments[2]);
  require(pixels.size() == static_cast<std::size_t>(width * height), "the file does not hold such an image");
  npy_intp counts[4];
  // Odometry and map of RTAB-Map are threads; each has a detector of its own and calls init.
  auto work = [&](int first) {
      {
        Gil gil;
        require_result(PyObject_CallFunction(function(module, "init"), "i", 1));
      }
      for (int k = first; k < first + 2; ++k) {
        counts[k] = detect_copy(module, pixels, width, height, k == 0);
      }
    };
  std::thread odometry(work, 0), map(work, 2);
  odometry.join();
  map.join();
  require(counts[0] == counts[1] && counts[0] == counts[2] && counts[0] == counts[3], "the same image, other keypoints");
}

void detect_wrong(PyObject * module)
{
  Gil gil;
  std::vector<unsigned char> pixels(640 * 480 * 3);
  for (std::size_t i = 0; i < pixels.size(); ++i) {  // squares of 32 pixels
    pixels[i] = (i / 3 % 640 / 32 + i / 3 / 640 / 32) % 2 ? 200 : 40;
  }
  npy_intp gray[] = {480, 640}, colour[] = {480, 640, 3}, none[] = {0, 0}, tiny[] = {8, 8}, row[] = {1000};
  npy_intp huge[] = {npy_intp{1} << 20, npy_intp{1} << 20}, still[] = {0, 0}, apart[] = {640 * 3, 3};
  auto wrap = [&](int dimensions, npy_intp * shape, int type, npy_intp * strides = nullptr) {
      PyObject * array = PyArray_New(
        &PyArray_Type, dimensions, shape, type, strides, pixels.data(), 0, NPY_ARRAY_WRITEABLE, nullptr);
      require(array != nullptr, "cannot make the image");
      return array;
    };
  require_result(PyObject_CallFunction(function(module, "init"), "i", 0));
  const std::pair<const char *, PyObject *> images[] = {
    {"colour", wrap(3, colour, NPY_UBYTE)},
    {"every third column", wrap(2, gray, NPY_UBYTE, apart)},
    {"empty", wrap(2, none, NPY_UBYTE)},
    {"tiny", wrap(2, tiny, NPY_UBYTE)},
    {"huge", wrap(2, huge, NPY_UBYTE, still)},
    {"a row", wrap(1, row, NPY_UBYTE)},
    {"float", wrap(2, tiny, NPY_FLOAT)},
    {"None", Py_None},
    {"text", PyUnicode_FromString("image")}};
  for (int turn = 0; turn < 2; ++turn) {  // the second time nothing more is to be said
    for (auto & [name, image] : images) {
      std::printf("%s: %ld\n", name, static_cast<long>(detect(module, image, false)));
    }
  }
}

// Calls extract on (height, width, channels) bytes, which RTAB-Map calls signed, and checks what it takes for granted.
std::vector<float> extract(PyObject * module, std::vector<unsigned char> pixels, npy_intp width, npy_intp height, npy_intp channels)
{
  Gil gil;
  npy_intp shape[] = {height, width, channels};
  PyObject * image = PyArray_SimpleNewFromData(3, shape, NPY_BYTE, pixels.data());
  PyObject * result = PyObject_CallFunctionObjArgs(function(module, "extract"), image, nullptr);
  auto place = as_matrix(result, "global descriptor");
  require(PyArray_TYPE(place) == NPY_FLOAT, "global descriptor: not float32");
  require(PyArray_DIM(place, 0) == 1 && PyArray_DIM(place, 1) > 0, "global descriptor: not (1, S)");
  auto numbers = static_cast<const float *>(PyArray_DATA(place));
  std::vector<float> found(numbers, numbers + PyArray_DIM(place, 1));
  require(Py_REFCNT(image) == 1, "extract: it keeps the image");
  Py_DECREF(image);
  Py_DECREF(result);
  std::fill(pixels.begin(), pixels.end(), static_cast<unsigned char>(0xAA));
  return found;
}

void extract_images(PyObject * module, char ** arguments)
{
  std::ifstream file(arguments[0], std::ios::binary);
  const std::vector<unsigned char> gray{std::istreambuf_iterator<char>(file), {}};
  const npy_intp width = std::atol(arguments[1]), height = std::atol(arguments[2]);
  require(gray.size() == static_cast<std::size_t>(width * height), "the file does not hold such an image");
  std::vector<unsigned char> colour;
  for (unsigned char pixel : gray) {
    colour.insert(colour.end(), 3, pixel);
  }
  {
    Gil gil;
    require_result(PyObject_CallFunction(function(module, "init"), "i", 4096));
  }
  const auto place = extract(module, gray, width, height, 1);
  require(place == extract(module, colour, width, height, 3), "the same image in colour, another global descriptor");
  for (float number : place) {
    std::printf("%.9g\n", static_cast<double>(number));
  }
  // Whatever comes, the size stays: RTAB-Map ends where two of them differ.
  for (npy_intp channels : {2, 4}) {
    const auto wrong = extract(module, std::vector<unsigned char>(static_cast<std::size_t>(100 * 100 * channels)), 100, 100, channels);
    require(wrong == std::vector<float>(place.size()), "no image, but a global descriptor or one of another size");
  }
  require(extract(module, std::vector<unsigned char>(16), 4, 4, 1).size() == place.size(), "another size for a tiny image");
}

// Calls match on descriptors (count, size) against themselves in reverse order; returns the pairs as RTAB-Map reads them.
std::vector<int> match(PyObject * module, npy_intp count, npy_intp size, float value, npy_intp other_size)
{
  Gil gil;
  require_result(PyObject_CallFunction(function(module, "init"), "ifiis", static_cast<int>(size), 0.2, 20, 1, "indoor"));
  const auto elements = static_cast<std::size_t>(count * size);
  std::vector<float> from(elements), to(static_cast<std::size_t>(count * other_size)), zeros(static_cast<std::size_t>(count) * 2);
  unsigned state = 1;
  for (auto & number : from) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  for (npy_intp i = 0; i < count; ++i) {
    float length = 0;
    for (npy_intp j = 0; j < size; ++j) {
      length += from[static_cast<std::size_t>(i * size + j)] * from[static_cast<std::size_t>(i * size + j)];
    }
    for (npy_intp j = 0; j < size; ++j) {
      from[static_cast<std::size_t>(i * size + j)] /= std::max(1e-6f, std::sqrt(length));
    }
  }
  for (npy_intp i = 0; size == other_size && i < count; ++i) {
    std::memcpy(&to[static_cast<std::size_t>((count - 1 - i) * size)], &from[static_cast<std::size_t>(i * size)],
      static_cast<std::size_t>(size) * sizeof(float));
  }
  if (value != 0 && !from.empty()) {
    from[0] = value;
  }
  auto wrap = [](std::vector<float> & numbers, npy_intp rows, npy_intp columns) {
      npy_intp shape[] = {rows, columns};
      return PyArray_SimpleNewFromData(columns ? 2 : 1, shape, NPY_FLOAT, numbers.data());
    };
  PyObject * width = PyLong_FromLong(640), * height = PyLong_FromLong(480);
  PyObject * result = PyObject_CallFunctionObjArgs(
    function(module, "match"), wrap(zeros, count, 2), wrap(zeros, count, 2), wrap(zeros, count, 0), wrap(zeros, count, 0),
    wrap(from, count, size), wrap(to, count, other_size), width, height, nullptr);
  auto pairs = as_matrix(result, "matches");
  require(PyArray_TYPE(pairs) == NPY_INT32, "matches: not int32");
  require(PyArray_DIM(pairs, 1) == 2, "matches: not (P, 2)");
  auto numbers = static_cast<const int *>(PyArray_DATA(pairs));
  std::vector<int> found(numbers, numbers + PyArray_DIM(pairs, 0) * 2);
  Py_DECREF(result);
  return found;
}

void match_wrong(PyObject * module, npy_intp size)
{
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int turn = 0; turn < 2; ++turn) {
    std::printf("none: %zu\n", match(module, 0, size, 0, size).size());
    std::printf("another model's: %zu\n", match(module, 10, size / 2, 0, size / 2).size());
    std::printf("of two sizes: %zu\n", match(module, 10, size, 0, size / 2).size());
    std::printf("not a number: %zu\n", match(module, 10, size, nan, size).size());
  }
}

}  // namespace

int main(int argc, char ** argv)
{
  require(argc > 2, "expected FILE.py and what to do");
  const std::string path = argv[1], task = argv[2];
  Py_InitializeEx(1);
  PyRun_SimpleString("import sys, threading\nif hasattr(sys, 'argv'): del sys.argv");
  const auto slash = path.rfind('/');
  const std::string folder = path.substr(0, slash), name = path.substr(slash + 1, path.rfind('.') - slash - 1);
  PyRun_SimpleString(("sys.path.append(\"" + folder + "\")").c_str());
  require(_import_array() == 0, "no numpy");
  PyObject * module = PyImport_ImportModule(name.c_str());
  require(module != nullptr, "the file cannot be imported");
  PyThreadState * main_thread = PyEval_SaveThread();
  if (task == "detect" && argc == 6) {
    detect_images(module, argv + 3);
  } else if (task == "detect-wrong") {
    detect_wrong(module);
  } else if (task == "extract" && argc == 6) {
    extract_images(module, argv + 3);
  } else if (task == "match" && argc == 5) {
    for (int index : match(module, std::atol(argv[3]), std::atol(argv[4]), 0, std::atol(argv[4]))) {
      std::printf("%d\n", index);
    }
  } else if (task == "match-wrong" && argc == 4) {
    match_wrong(module, std::atol(argv[3]));
  } else {
    fail("unknown task " + task);
  }
  PyEval_RestoreThread(main_thread);
  std::fflush(stdout);
  require(Py_FinalizeEx() == 0, "the interpreter does not end");
  return 0;
}
