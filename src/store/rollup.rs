//! Response times of many requests in a few bytes, from which quantiles are read with a known error.

/// Mean and quantiles of response times, in µs. All zero when there were no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Quantiles {
    /// How many response times.
    pub count: u64,
    /// Their mean, rounded down.
    pub mean_us: u64,
    /// Half are at or below.
    pub p50_us: u64,
    /// 95 % are at or below.
    pub p95_us: u64,
    /// 99 % are at or below.
    pub p99_us: u64,
}
