// Draw images with a sampler that `odediff export` wrote: onnxruntime's C++ API and the standard library.
//
//   sample MODEL.onnx OUT.ppm [N] [SEED] [--label K] [--threads T] [--noise FILE] [--raw FILE]
//
// Image k of a seed is that of `odediff.onnx.load(MODEL).run(N, SEED)`: the noise is odediff/philox.py's.
//   --noise FILE   float32 instead: noise (N, C, H, W), then row_noise (rows, N, C, H, W) of a stochastic sampler
//   --raw FILE     images (N, C, H, W) float32, in the data's range, besides the picture

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using Floats = std::vector<float>;
using Shape = std::vector<int64_t>;

struct Options {
  std::string model, picture, noise, raw;
  size_t n = 16;
  uint64_t seed = 0;
  std::optional<int32_t> label;
  int threads = 0;  // 0: as many as there are cores
};

uint64_t whole(const std::string& what, const std::string& text, uint64_t low, uint64_t high) {
  try {
    size_t end = 0;
    const uint64_t value = std::stoull(text, &end);
    if (end == text.size() && std::isdigit(static_cast<unsigned char>(text[0])) && low <= value && value <= high)
      return value;
  } catch (const std::exception&) {
  }
  throw std::invalid_argument(what + " = " + text + " must be a whole number in " + std::to_string(low) + " .. " +
                              std::to_string(high));
}

Options parse(int argc, char** argv) {
  Options made;
  std::vector<std::string> plain;
  for (int k = 1; k < argc; ++k) {
    const std::string word = argv[k];
    if (word.rfind("--", 0) != 0) {
      plain.push_back(word);
      continue;
    }
    if (k + 1 == argc) throw std::invalid_argument(word + " needs a value");
    const std::string value = argv[++k];
    if (word == "--noise") made.noise = value;
    else if (word == "--raw") made.raw = value;
    else if (word == "--label") made.label = static_cast<int32_t>(whole("label", value, 0, INT32_MAX));
    else if (word == "--threads") made.threads = static_cast<int>(whole("threads", value, 1, 4096));
    else throw std::invalid_argument("unknown option " + word);
  }
  if (plain.size() < 2 || plain.size() > 4)
    throw std::invalid_argument(
        "usage: sample MODEL.onnx OUT.ppm [N] [SEED] [--label K] [--threads T] [--noise FILE] [--raw FILE]");
  made.model = plain[0];
  made.picture = plain[1];
  if (plain.size() > 2) made.n = whole("N", plain[2], 1, 1 << 20);
  if (plain.size() > 3) made.seed = whole("SEED", plain[3], 0, UINT64_MAX);
  return made;
}

// What odediff wrote into the file's metadata. Only the few values that are needed, and no JSON library for them.
struct About {
  std::optional<std::array<float, 2>> range;  // of the data
  std::optional<int32_t> classes;
  std::vector<uint32_t> rows;  // of the plan's rows, those that draw noise

  explicit About(const std::string& json) {
    if (json.find("\"format\": \"odediff-onnx-1\"") == std::string::npos)
      throw std::runtime_error("the file was not written by odediff, or by another version");
    const std::vector<double> limits = numbers(json, "\"range\": "), count = numbers(json, "\"num_classes\": ");
    if (limits.size() == 2) range = {static_cast<float>(limits[0]), static_cast<float>(limits[1])};
    if (count.size() == 1) classes = static_cast<int32_t>(count[0]);
    const std::vector<double> c = numbers(json, "\\\"c\\\": ");  // the plan is JSON in a string of JSON
    for (size_t i = 0; i < c.size(); ++i)
      if (c[i] != 0) rows.push_back(static_cast<uint32_t>(i));
  }

 private:
  // The number or list of numbers after a key; none for null.
  static std::vector<double> numbers(const std::string& json, const std::string& key) {
    std::vector<double> made;
    const size_t found = json.find(key);
    if (found == std::string::npos) return made;
    const char* at = json.c_str() + found + key.size();
    const bool list = *at == '[';
    at += list;
    for (char* end = nullptr;; at = end + 1) {
      const double value = std::strtod(at, &end);
      if (end == at) return made;
      made.push_back(value);
      if (!list || *end != ',') return made;
    }
  }
};

// Philox 4x32-10 (Salmon et al. 2011) of the counter (block, row, index) and the key `seed`.
std::array<uint32_t, 4> philox(uint64_t seed, uint64_t index, uint32_t row, uint32_t block) {
  std::array<uint32_t, 4> c{block, row, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// Unit normal noise of one sample (Box & Muller 1958). Row 0 is the sampler's start, row i + 1 of the plan's row i.
void normal(uint64_t seed, uint64_t index, uint32_t row, float* out, size_t size) {
  const double turn = 8 * std::atan(1.0);
  for (size_t e = 0; e < size; e += 4) {
    const std::array<uint32_t, 4> w = philox(seed, index, row, static_cast<uint32_t>(e / 4));
    std::array<double, 4> u{}, z{};
    for (int j = 0; j < 4; ++j) u[j] = (w[j] + 0.5) / 4294967296.0;
    for (int j = 0; j < 4; j += 2) {
      const double r = std::sqrt(-2 * std::log(u[j]));
      z[j] = r * std::cos(turn * u[j + 1]);
      z[j + 1] = r * std::sin(turn * u[j + 1]);
    }
    for (size_t j = 0; j < 4 && e + j < size; ++j) out[e + j] = static_cast<float>(z[j]);
  }
}

Floats read_floats(const std::string& path, size_t count) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path);
  const size_t bytes = static_cast<size_t>(file.tellg());
  if (bytes != count * sizeof(float))
    throw std::runtime_error(path + " has " + std::to_string(bytes) + " bytes, expected " +
                             std::to_string(count * sizeof(float)));
  Floats made(count);
  file.seekg(0).read(reinterpret_cast<char*>(made.data()), static_cast<std::streamsize>(bytes));
  return made;
}

void write_bytes(const std::string& path, const std::string& head, const void* data, size_t bytes) {
  std::ofstream file(path, std::ios::binary);
  file << head;
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

// Binary PGM for one channel, PPM for three: a grid about as wide as high, `range` as black to white.
void write_picture(const std::string& path, const Floats& images, const Shape& shape, size_t n,
                   std::array<float, 2> range) {
  const size_t channels = shape[0], height = shape[1], width = shape[2];
  const size_t columns = static_cast<size_t>(std::ceil(std::sqrt(static_cast<double>(n))));
  const size_t lines = (n + columns - 1) / columns;
  std::vector<unsigned char> pixels(lines * height * columns * width * channels, 0);
  for (size_t k = 0; k < n; ++k)
    for (size_t c = 0; c < channels; ++c)
      for (size_t y = 0; y < height; ++y)
        for (size_t x = 0; x < width; ++x) {
          const float value = images[((k * channels + c) * height + y) * width + x];
          const float level = std::clamp((value - range[0]) / (range[1] - range[0]), 0.0f, 1.0f);
          const size_t line = k / columns * height + y, column = k % columns * width + x;
          pixels[(line * columns * width + column) * channels + c] =
              static_cast<unsigned char>(std::lround(255 * level));
        }
  const std::string size = std::to_string(columns * width) + " " + std::to_string(lines * height);
  write_bytes(path, (channels == 1 ? "P5\n" : "P6\n") + size + "\n255\n", pixels.data(), pixels.size());
}

class Sampler {
 public:
  explicit Sampler(const Options& options)
      : environment_(ORT_LOGGING_LEVEL_WARNING, "odediff"), session_(open(environment_, options)),
        about_(metadata(session_)) {
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t k = 0; k < session_.GetInputCount(); ++k) {
      const std::string name = session_.GetInputNameAllocated(k, allocator).get();
      // Named: the information is part of the type, and lives no longer.
      const Ort::TypeInfo type = session_.GetInputTypeInfo(k);
      const Shape dims = type.GetTensorTypeAndShapeInfo().GetShape();
      if (name == "noise") {
        batch_ = dims.at(0) > 0 ? static_cast<size_t>(dims[0]) : 0;
        shape_.assign(dims.begin() + 1, dims.end());
      } else if (name == "row_noise") {
        rows_ = static_cast<size_t>(dims.at(0));
      } else if (name == "label") {
        labelled_ = true;
      } else {
        throw std::runtime_error(options.model + " has an input " + name +
                                 " and is no sampler; give `odediff export` a solver or nfe");
      }
    }
    if (shape_.size() != 3 || (shape_[0] != 1 && shape_[0] != 3))
      throw std::runtime_error(options.model + " makes no gray or RGB images");
    if (rows_ != about_.rows.size()) throw std::runtime_error(options.model + ": row_noise does not fit the plan");
    size_ = static_cast<size_t>(std::accumulate(shape_.begin(), shape_.end(), int64_t{1}, std::multiplies<>()));
  }

  const Shape& shape() const { return shape_; }
  const About& about() const { return about_; }
  size_t floats_of_noise(size_t n) const { return (1 + rows_) * n * size_; }

  // Noise of image k at 0, then at each row of the plan that draws: (1 + rows, n, C, H, W).
  Floats draw(size_t n, uint64_t seed) const {
    Floats made(floats_of_noise(n));
    for (size_t j = 0; j <= rows_; ++j)
      for (size_t k = 0; k < n; ++k)
        normal(seed, k, j == 0 ? 0 : about_.rows[j - 1] + 1, &made[(j * n + k) * size_], size_);
    return made;
  }

  // Images (n, C, H, W). A file of a fixed batch runs as often as it takes, the last image repeated in the last run.
  Floats run(const Floats& noise, size_t n, std::optional<int32_t> label) {
    if (label && !labelled_) throw std::runtime_error("the sampler takes no label");
    if (label && *label > about_.classes.value_or(0))
      throw std::runtime_error("label = " + std::to_string(*label) + " is none of the model's classes");
    const size_t batch = batch_ ? batch_ : n;
    const std::vector<int32_t> labels(batch, label.value_or(about_.classes.value_or(0)));
    Floats images(n * size_), part((1 + rows_) * batch * size_);
    for (size_t from = 0; from < n; from += batch) {
      for (size_t j = 0; j <= rows_; ++j)
        for (size_t k = 0; k < batch; ++k)
          std::copy_n(&noise[(j * n + std::min(from + k, n - 1)) * size_], size_, &part[(j * batch + k) * size_]);
      const Ort::Value made = run(part, labels);
      std::copy_n(made.GetTensorData<float>(), std::min(batch, n - from) * size_, &images[from * size_]);
    }
    return images;
  }

 private:
  static Ort::Session open(const Ort::Env& environment, const Options& options) {
    Ort::SessionOptions settings;
    if (options.threads) settings.SetIntraOpNumThreads(options.threads);
    return Ort::Session(environment, std::basic_string<ORTCHAR_T>(options.model.begin(), options.model.end()).c_str(),
                        settings);
  }

  static std::string metadata(const Ort::Session& session) {
    Ort::AllocatorWithDefaultOptions allocator;
    const Ort::ModelMetadata all = session.GetModelMetadata();
    const Ort::AllocatedStringPtr entry = all.LookupCustomMetadataMapAllocated("odediff", allocator);
    return entry ? entry.get() : "";
  }

  Ort::Value run(Floats& noise, const std::vector<int32_t>& labels) {
    const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t batch = static_cast<int64_t>(labels.size());
    const size_t first = labels.size() * size_;
    Shape dims{batch}, row_dims{static_cast<int64_t>(rows_), batch};
    dims.insert(dims.end(), shape_.begin(), shape_.end());
    row_dims.insert(row_dims.end(), shape_.begin(), shape_.end());
    std::vector<const char*> names{"noise"};
    std::vector<Ort::Value> values;
    values.push_back(Ort::Value::CreateTensor<float>(cpu, noise.data(), first, dims.data(), dims.size()));
    if (rows_) {
      names.push_back("row_noise");
      values.push_back(Ort::Value::CreateTensor<float>(cpu, noise.data() + first, noise.size() - first,
                                                       row_dims.data(), row_dims.size()));
    }
    if (labelled_) {
      names.push_back("label");
      values.push_back(Ort::Value::CreateTensor<int32_t>(cpu, const_cast<int32_t*>(labels.data()), labels.size(),
                                                         &batch, 1));
    }
    const char* output = "images";
    return std::move(
        session_.Run(Ort::RunOptions{nullptr}, names.data(), values.data(), values.size(), &output, 1)[0]);
  }

  Ort::Env environment_;
  Ort::Session session_;
  About about_;
  Shape shape_;       // of one image
  size_t batch_ = 0;  // fixed, 0: any
  size_t rows_ = 0, size_ = 0;
  bool labelled_ = false;
};

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    Sampler sampler(options);
    const size_t n = options.n;
    const Floats noise = options.noise.empty() ? sampler.draw(n, options.seed)
                                               : read_floats(options.noise, sampler.floats_of_noise(n));
    const Floats images = sampler.run(noise, n, options.label);
    if (!std::all_of(images.begin(), images.end(), [](float value) { return std::isfinite(value); }))
      throw std::runtime_error("the sampler returned values that are not finite");
    const auto [low, high] = std::minmax_element(images.begin(), images.end());
    const std::array<float, 2> own{*low, std::max(*high, std::nextafter(*low, std::numeric_limits<float>::max()))};
    write_picture(options.picture, images, sampler.shape(), n, sampler.about().range.value_or(own));
    if (!options.raw.empty()) write_bytes(options.raw, "", images.data(), images.size() * sizeof(float));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
