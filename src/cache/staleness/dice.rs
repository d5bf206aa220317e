//! Pseudo-random numbers from a fixed seed, for simulation: SplitMix64. Do not use them for secrets or scheduling.

pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 (inclusive) to 1 (exclusive).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// An index below `count`, which must not be 0.
    pub(super) fn index(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count - 1)
    }

    /// The number of successes in `trials` trials. Beyond 16 trials it is the expected number.
    pub(super) fn successes(&mut self, trials: u32, probability: f64) -> f64 {
        if probability <= 0.0 || probability >= 1.0 || trials > 16 {
            return f64::from(trials) * probability.clamp(0.0, 1.0);
        }
        (0..trials).filter(|_| self.unit() < probability).count() as f64
    }
}
