//! Medians over interleaved blocks.

/// What repeated blocks gave.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Nothing yet.
    pub const fn new() -> Samples {
        Samples(vec![])
    }

    /// Adds one block's value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle value; NaN of nothing.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Half of what lies between the quartiles, as a share of the median: the noise.
    pub fn noise(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / 2.0 / self.median().abs()
    }

    /// The largest value; NaN of nothing.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Block by block: what both sides of a quotient suffered from the machine then cancels out.
    pub fn per(&self, other: &Samples, of: impl Fn(f64, f64) -> f64) -> Samples {
        let pairs = self.0.iter().zip(&other.0);
        Samples(pairs.map(|(a, b)| of(*a, *b)).collect())
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        let at = q * last as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Samples {
        Samples(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_paired_quotients() {
        let a: Samples = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        let b: Samples = [2.0, 0.5, 1.5, 1.0].into_iter().collect();
        assert_eq!(a.median(), 2.5);
        assert_eq!(a.max(), 4.0);
        assert_eq!(a.noise(), 0.3);
        let ratio = a.per(&b, |a, b| a / b);
        assert_eq!((ratio.median(), ratio.noise()), (2.0, 0.0));
        assert!(Samples::default().median().is_nan());
    }
}
