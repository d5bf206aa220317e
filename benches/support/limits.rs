//! Prints figures, and whether they are within their limits.

// Each bench uses a part.
#![allow(dead_code)]

#[derive(Default)]
pub(crate) struct Limits {
    pub(crate) has_failed: bool,
}

impl Limits {
    fn check(&mut self, what: &str, figures: &str, is_within: bool, limit: &str) {
        let verdict = if is_within { "" } else { "   FAILED" };
        self.has_failed |= !is_within;
        println!("  {what:<62}{figures:>36}   {limit}{verdict}");
    }

    pub(crate) fn compare(&mut self, what: &str, [without, with]: [f64; 2], limit: f64) {
        let difference = with - without;
        let figures = format!("{without:.3} without, {with:.3} with: {difference:+.3}");
        self.check(what, &figures, difference <= limit, &format!("at most {limit}"));
    }

    pub(crate) fn at_most(&mut self, what: &str, figure: f64, limit: f64) {
        self.check(what, &format!("{figure:.2}"), figure <= limit, &format!("at most {limit}"));
    }

    pub(crate) fn at_least(&mut self, what: &str, figure: f64, limit: f64) {
        self.check(what, &format!("{figure:.2}"), figure >= limit, &format!("at least {limit}"));
    }
}

/// Prints a figure that has no limit.
pub(crate) fn tell(what: &str, figures: &str) {
    println!("  {what:<62}{figures:>36}");
}
