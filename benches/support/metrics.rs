//! Reads the text of metrics.

use std::iter::Sum;
use std::str::FromStr;

/// The sum of a metric's series. With labels: of the series that begin like this.
pub(crate) fn sum_of<T: FromStr + Sum>(page: &str, series: &str) -> T {
    let value = |line: &str| {
        let rest = line.strip_prefix(series)?;
        let is_whole = series.contains('{') || rest.starts_with([' ', '{']);
        is_whole.then_some(rest)?.rsplit(' ').next()?.parse().ok()
    };
    page.lines().filter_map(value).sum()
}
