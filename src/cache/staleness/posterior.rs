//! Draws from the posterior of the changes of one scope, and of the answers that they have made wrong. Pure.
//!
//! The model: changes of the catalogue are a Poisson process. Each change affects each list (cache key) with the same
//! probability, independently. This covers catalogues that change as a whole (probability 1), lists that change alone
//! (about 1 / number of lists), and all between. A list that is unchanged between two looks was affected by no change
//! between them; one that has changed was affected by at least one.
//!
//! The rate has a gamma prior and is integrated out. The times of the changes are drawn by Metropolis-Hastings steps
//! (birth, death, shift); the probability by Gibbs steps on a grid. Where lists are unchanged, changes are less likely
//! by a known factor, so proposals are made from that density.

use super::answers::AnswerBin;
use super::dice::Dice;

/// What is known about the lists of a scope. Times are in seconds.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) lists: usize,
    /// Spans without a change of a list.
    pub(super) unchanged: Vec<(f64, f64)>,
    /// Spans with at least one change of a list.
    pub(super) changed: Vec<(f64, f64)>,
    /// Responses whose answers may have been wrong.
    pub(super) doubtful: Vec<Doubtful>,
}

/// A response of a list, and its answers. They are wrong from the first change of the list on.
#[derive(Debug)]
pub(super) struct Doubtful {
    pub(super) from: f64,
    /// The end of the span.
    pub(super) to: f64,
    /// Whether it is known that the list has changed in the span.
    pub(super) is_changed: bool,
    /// For each response, when it was sent, and its answers.
    pub(super) responses: Vec<(f64, Vec<AnswerBin>)>,
}

/// The shape of the prior of the rate (Jeffreys), and its weight in seconds.
const PRIOR: (f64, f64) = (0.5, 10.0);
/// The most changes that are simulated. Beyond this, the looks say nothing about single changes.
const MAX_CHANGES: usize = 3000;
const WARM_UP: usize = 60;
/// With so few changes, each draw takes two sweeps, so that the draws depend less on one another.
const FEW_CHANGES: usize = 200;
/// Fewer draws say too little.
const MIN_DRAWS: usize = 60;
/// The number of probabilities to choose from.
const GRID: usize = 33;
/// Beyond this number of changes in a span, the probability that none affects the list is taken to be that of this number.
const MAX_COUNT: usize = 40;

struct Change {
    time: f64,
    segment: usize,
}

struct Sampler<'e> {
    evidence: &'e Evidence,
    /// The ends of the segments. Within a segment the same lists are unchanged, and the same have changed.
    bounds: Vec<f64>,
    /// For each segment, the number of lists that are unchanged in it.
    unchanged: Vec<u32>,
    /// For each segment, the spans with a change that cover it: a part of `covers`.
    cover: Vec<(u32, u32)>,
    covers: Vec<u32>,
    /// The segments of each span with a change.
    spans: Vec<(usize, usize)>,
    /// The number of changes in each of these spans.
    counts: Vec<usize>,
    changes: Vec<Change>,
    /// The probability that a change affects a list.
    probability: f64,
    /// Its complement to the power of the index.
    spared: Vec<f64>,
    /// For each segment, the density of changes compared with that where nothing is known.
    density: Vec<f64>,
    /// The integral of the density up to the begin of each segment, and in all.
    mass: Vec<f64>,
    /// The probabilities to choose from, and the logarithms of each and of its complement.
    grid: [(f64, f64, f64); GRID],
    dice: Dice,
    /// The number of steps so far.
    work: usize,
}

impl Evidence {
    /// Draws the number of wrong answers, `draws` times. Subtracts the steps that this takes from `budget`. If the budget
    /// is used up, earlier draws are repeated. `None` if there are too few.
    pub(super) fn draw(&self, draws: usize, now: f64, seed: u64, budget: &mut usize) -> Option<Vec<f64>> {
        if self.doubtful.is_empty() {
            return Some(vec![0.0; draws]);
        }
        let mut sampler = Sampler::new(self, now, seed);
        let wrong = sampler.draw(draws, *budget);
        *budget = budget.saturating_sub(sampler.work);
        wrong
    }
}

impl Sampler<'_> {
    fn draw(&mut self, draws: usize, budget: usize) -> Option<Vec<f64>> {
        for _ in 0..WARM_UP {
            if self.work >= budget {
                return None;
            }
            self.sweep();
        }
        let mut wrong = Vec::with_capacity(draws);
        while wrong.len() < draws && self.work < budget {
            self.sweep();
            if self.changes.len() < FEW_CHANGES {
                self.sweep();
            }
            wrong.push(self.wrong_answers());
        }
        let drawn = wrong.len();
        if drawn < draws.min(MIN_DRAWS) {
            return None;
        }
        for index in drawn..draws {
            wrong.push(wrong[index % drawn]);
        }
        Some(wrong)
    }
}

impl<'e> Sampler<'e> {
    fn new(evidence: &'e Evidence, now: f64, seed: u64) -> Self {
        let spans = || evidence.unchanged.iter().chain(&evidence.changed);
        let mut bounds: Vec<f64> = spans().flat_map(|&(from, to)| [from, to]).collect();
        bounds.extend(evidence.doubtful.iter().map(|doubtful| doubtful.from));
        bounds.push(now);
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        bounds.truncate(bounds.partition_point(|bound| *bound <= now));
        let segments = bounds.len().saturating_sub(1);
        let segment_of = |time: f64| bounds.partition_point(|bound| *bound < time).min(segments);
        let mut unchanged = vec![0_i64; segments + 1];
        for &(from, to) in &evidence.unchanged {
            unchanged[segment_of(from)] += 1;
            unchanged[segment_of(to)] -= 1;
        }
        let mut running = 0;
        let unchanged: Vec<u32> = unchanged[..segments]
            .iter()
            .map(|step| {
                running += step;
                u32::try_from(running).unwrap_or(0)
            })
            .collect();
        let spans: Vec<_> = evidence.changed.iter().map(|&(from, to)| (segment_of(from), segment_of(to))).collect();
        let mut sizes = vec![0_u32; segments];
        for &(from, to) in &spans {
            sizes[from..to].iter_mut().for_each(|size| *size += 1);
        }
        let mut end = 0;
        let mut cover: Vec<(u32, u32)> = sizes
            .iter()
            .map(|size| {
                end += size;
                (end - size, end - size)
            })
            .collect();
        let mut covers = vec![0; end as usize];
        for (span, &(from, to)) in (0..).zip(&spans) {
            for (_, next) in &mut cover[from..to] {
                covers[*next as usize] = span;
                *next += 1;
            }
        }
        let counts = vec![0; spans.len()];
        let work = 16 * bounds.len() + 2 * covers.len();
        let mut sampler = Self {
            evidence,
            bounds,
            unchanged,
            cover,
            covers,
            spans,
            counts,
            changes: Vec::new(),
            probability: 0.0,
            spared: Vec::new(),
            density: Vec::new(),
            mass: Vec::new(),
            grid: grid(evidence.lists),
            dice: Dice::new(seed),
            work,
        };
        sampler.set_probability(if evidence.lists == 1 { 1.0 } else { 0.5 });
        // The shortest spans first: a change in one of them often explains longer ones.
        let mut order: Vec<usize> = (0..sampler.spans.len()).collect();
        order.sort_by_key(|&span| sampler.spans[span].1 - sampler.spans[span].0);
        for span in order {
            if sampler.counts[span] == 0 && sampler.spans[span].0 < sampler.spans[span].1 {
                let change = sampler.propose(sampler.spans[span]);
                sampler.add(change);
            }
        }
        sampler
    }

    fn segments(&self) -> usize {
        self.density.len()
    }

    fn set_probability(&mut self, probability: f64) {
        self.work += self.unchanged.len();
        self.probability = probability;
        let most = self.unchanged.iter().copied().max().unwrap_or(0) as usize;
        let complement = 1.0 - probability;
        let mut power = 1.0;
        self.spared.clear();
        for _ in 0..=most.max(MAX_COUNT) {
            self.spared.push(power);
            power *= complement;
        }
        // Where everything is excluded, a tiny density remains, so that each span has some.
        self.density.clear();
        self.density.extend(self.unchanged.iter().map(|&count| self.spared[count as usize].max(1e-12)));
        self.mass.clear();
        self.mass.push(0.0);
        let mut sum = 0.0;
        for (segment, density) in self.density.iter().enumerate() {
            sum += density * (self.bounds[segment + 1] - self.bounds[segment]);
            self.mass.push(sum);
        }
    }

    fn total(&self) -> f64 {
        self.mass[self.segments()]
    }

    fn length(&self) -> f64 {
        self.bounds.first().zip(self.bounds.last()).map_or(0.0, |(first, last)| last - first)
    }

    /// A change at a random time in these segments.
    fn propose(&mut self, (from, to): (usize, usize)) -> Change {
        let mass = self.mass[from] + (self.mass[to] - self.mass[from]) * self.dice.unit();
        let segment = (from + self.mass[from + 1..to].partition_point(|end| *end <= mass)).min(to - 1);
        let within = (mass - self.mass[segment]) / self.density[segment];
        Change { time: (self.bounds[segment] + within).clamp(self.bounds[segment], self.bounds[segment + 1]), segment }
    }

    fn cover(&self, segment: usize) -> &[u32] {
        let (from, to) = self.cover[segment];
        &self.covers[from as usize..to as usize]
    }

    fn count(&mut self, segment: usize, step: isize) {
        let (from, to) = self.cover[segment];
        for &span in &self.covers[from as usize..to as usize] {
            let count = &mut self.counts[span as usize];
            *count = count.saturating_add_signed(step);
        }
    }

    fn add(&mut self, change: Change) {
        self.count(change.segment, 1);
        self.changes.push(change);
    }

    /// The probability that at least one of `count` changes affects a list.
    fn affected(&self, count: usize) -> f64 {
        1.0 - self.spared[count.min(MAX_COUNT)]
    }

    fn sweep(&mut self) {
        if self.segments() == 0 {
            return;
        }
        for index in 0..self.changes.len() {
            self.shift(index);
        }
        for _ in 0..self.changes.len() / 2 + 6 {
            if self.dice.unit() < 0.5 {
                self.try_birth();
            } else {
                self.try_death();
            }
        }
        self.draw_probability();
    }

    /// Moves a change within one of the spans that cover it.
    fn shift(&mut self, index: usize) {
        let old = self.changes[index].segment;
        let cover = self.cover(old);
        if cover.is_empty() {
            return;
        }
        let options = cover.len();
        self.work += 4 + 2 * options;
        let pick = self.dice.index(options);
        let span = self.spans[self.cover(old)[pick] as usize];
        let proposed = self.propose(span);
        let new = proposed.segment;
        let lies_in = |span: u32, segment: usize| {
            let (from, to) = self.spans[span as usize];
            segment >= from && segment < to
        };
        let mut ratio = options as f64 / self.cover(new).len() as f64;
        for &span in self.cover(old).iter().filter(|&&span| !lies_in(span, new)) {
            let count = self.counts[span as usize];
            ratio *= self.affected(count - 1) / self.affected(count);
        }
        if ratio > 0.0 {
            for &span in self.cover(new).iter().filter(|&&span| !lies_in(span, old)) {
                let count = self.counts[span as usize];
                ratio *= self.affected(count + 1) / self.affected(count);
            }
        }
        if self.dice.unit() < ratio {
            self.count(old, -1);
            self.count(new, 1);
            self.changes[index] = proposed;
        }
    }

    /// The odds of one more change, without the spans that it must explain.
    fn birth_odds(&self, number: usize) -> f64 {
        let (shape, weight) = PRIOR;
        (number as f64 + shape) / (self.length() + weight) * self.total() / (number + 1) as f64
    }

    fn try_birth(&mut self) {
        if self.changes.len() >= MAX_CHANGES {
            return;
        }
        let proposed = self.propose((0, self.segments()));
        self.work += 4 + self.cover(proposed.segment).len();
        let mut ratio = self.birth_odds(self.changes.len());
        for &span in self.cover(proposed.segment) {
            let count = self.counts[span as usize];
            ratio *= self.affected(count + 1) / self.affected(count);
        }
        if self.dice.unit() < ratio {
            self.add(proposed);
        }
    }

    fn try_death(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let index = self.dice.index(self.changes.len());
        let segment = self.changes[index].segment;
        let mut ratio = 1.0 / self.birth_odds(self.changes.len() - 1);
        for &span in self.cover(segment) {
            let count = self.counts[span as usize];
            ratio *= self.affected(count - 1) / self.affected(count);
        }
        if self.dice.unit() < ratio {
            self.count(segment, -1);
            self.changes.swap_remove(index);
        }
    }

    /// Draws the probability that a change affects a list, given which lists each change has affected.
    fn draw_probability(&mut self) {
        let lists = self.evidence.lists;
        if lists == 1 {
            return;
        }
        let (mut affected, mut spared) = (0.0, 0.0);
        for change in &self.changes {
            spared += f64::from(self.unchanged[change.segment]);
        }
        for span in 0..self.counts.len() {
            let count = self.counts[span];
            self.work += 1 + count.min(MAX_COUNT);
            let mut has_affected = false;
            for index in 0..count.min(MAX_COUNT) {
                let chance =
                    if has_affected { self.probability } else { self.probability / self.affected(count - index) };
                if self.dice.unit() < chance {
                    has_affected = true;
                    affected += 1.0;
                } else {
                    spared += 1.0;
                }
            }
        }
        self.work += self.changes.len() + 2 * GRID;
        let mut weights = [(0.0, 0.0); GRID];
        let mut most = f64::NEG_INFINITY;
        for (weight, (probability, of_affected, of_spared)) in weights.iter_mut().zip(self.grid) {
            // The prior is uniform. The ones added are for the distance of the grid points.
            let log = (affected + 1.0) * of_affected + (spared + 1.0) * of_spared;
            *weight = (probability, log);
            most = most.max(log);
        }
        let sum: f64 = weights.iter().map(|(_, log)| (log - most).exp()).sum();
        let mut left = self.dice.unit() * sum;
        for (probability, log) in weights {
            left -= (log - most).exp();
            if left <= 0.0 {
                self.set_probability(probability);
                return;
            }
        }
    }

    /// Draws how many answers were wrong.
    fn wrong_answers(&mut self) -> f64 {
        let mut times: Vec<f64> = self.changes.iter().map(|change| change.time).collect();
        times.sort_by(f64::total_cmp);
        let evidence = self.evidence;
        let mut wrong = 0.0;
        self.work += 4 * times.len();
        for doubtful in &evidence.doubtful {
            self.work += 4;
            let begin = times.partition_point(|time| *time < doubtful.from);
            let end = begin + times[begin..].partition_point(|time| *time < doubtful.to);
            let mut is_explained = !doubtful.is_changed;
            // The responses in the order of their requests. Each is wrong from the next change of the list on.
            let mut responses = doubtful.responses.iter().peekable();
            for (index, &time) in times[begin..end].iter().enumerate() {
                let left = end - begin - index;
                self.work += 1;
                let chance = if is_explained { self.probability } else { self.probability / self.affected(left) };
                if self.dice.unit() >= chance {
                    continue;
                }
                is_explained = true;
                while let Some((_, answers)) = responses.next_if(|(sent, _)| *sent <= time) {
                    for answers in answers {
                        self.work += 4;
                        wrong += self.dice.successes(answers.count, answers.share_after(time));
                    }
                }
            }
        }
        wrong
    }
}

/// The probabilities that a change affects a list to choose from, even in the logit, with the logarithms of each and of
/// its complement.
fn grid(lists: usize) -> [(f64, f64, f64); GRID] {
    let (low, high) = (0.5 / lists.max(1) as f64, 0.9995_f64);
    let logit = |probability: f64| (probability / (1.0 - probability)).ln();
    let step = (logit(high) - logit(low)) / (GRID - 1) as f64;
    std::array::from_fn(|index| {
        let probability = 1.0 / (1.0 + (-(logit(low) + step * index as f64)).exp());
        (probability, probability.ln(), (1.0 - probability).ln())
    })
}
