//! A log as segments: objects that hold the bytes from one offset to another. A decider.
//!
//!   0──────────8 MiB──────────16 MiB────┤├┤├┤├┤  what was pushed lately, a segment a chunk
//!
//! A byte of a log never changes, so segments may overlap and be written twice: any of them tells the truth. A segment
//! goes only when another one holds all of it.

use std::ops::Range;

/// What a segment made of several may hold, in bytes.
pub(super) const LARGE: u64 = 8 << 20;
/// After this many pushes the segments at the end become one.
const FRESH: usize = 32;

/// One segment: which bytes of the log it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Segment {
    /// Returns the object's name in its log's folder.
    pub(super) fn name(&self) -> String {
        format!("{:012}-{:012}", self.start, self.end)
    }

    /// Reads a name; `None`: not a segment, or not as long as its name says.
    pub(super) fn parse(name: &str, size: u64) -> Option<Segment> {
        let (start, end) = name.split_once('-')?;
        let segment = Segment { start: start.parse().ok()?, end: end.parse().ok()? };
        (segment.start.checked_add(size) == Some(segment.end) && size > 0 && segment.name() == name).then_some(segment)
    }

    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }

    fn holds(&self, other: &Segment) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// Picks the fewest segments that hold the log from its first byte on as far as there is no gap. They are ordered, and
/// each begins within or right behind the one before.
pub(super) fn chain(mut all: Vec<Segment>) -> Vec<Segment> {
    all.sort();
    let (mut picked, mut at): (Vec<Segment>, u64) = (Vec::new(), 0);
    let mut rest = all.as_slice();
    loop {
        let reachable = rest.partition_point(|segment| segment.start <= at);
        match rest[..reachable].iter().max_by_key(|segment| segment.end).filter(|segment| segment.end > at) {
            Some(next) => {
                picked.push(*next);
                at = next.end;
            }
            None => return picked,
        }
        rest = &rest[reachable..];
    }
}

/// Says which segments at the end of a chain become one, `fresh` of them pushed since that happened last; `None`: not now.
/// Takes along those before that are no longer than what follows them, so that a byte is moved few times.
pub(super) fn merge(chain: &[Segment], fresh: usize) -> Option<Range<usize>> {
    if fresh < FRESH {
        return None;
    }
    let (mut start, mut total) = (chain.len(), 0);
    while let Some(before) = start.checked_sub(1) {
        let length = chain[before].len();
        let is_fresh = chain.len() - before <= fresh;
        if total + length > LARGE || (!is_fresh && length > total) {
            break;
        }
        (start, total) = (before, total + length);
    }
    (chain.len() - start > 1).then_some(start..chain.len())
}

/// Says which segments of a chain become one each when nothing more is expected.
pub(super) fn merge_all(chain: &[Segment]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut total = 0;
    for (at, segment) in chain.iter().enumerate() {
        match groups.last_mut().filter(|_| total + segment.len() <= LARGE) {
            Some(group) => {
                group.end = at + 1;
                total += segment.len();
            }
            None => {
                groups.push(at..at + 1);
                total = segment.len();
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// Lists the segments of which another one holds all.
pub(super) fn superfluous(all: &[Segment], chain: &[Segment]) -> Vec<Segment> {
    let is_held = |segment: &&Segment| chain.iter().any(|held| held != *segment && held.holds(segment));
    all.iter().filter(is_held).copied().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(pairs: &[(u64, u64)]) -> Vec<Segment> {
        pairs.iter().map(|(start, end)| Segment { start: *start, end: *end }).collect()
    }

    #[test]
    fn names_are_read_as_they_are_written_and_nothing_else_is() {
        let segment = Segment { start: 7, end: 300 };
        assert_eq!(segment.name(), "000000000007-000000000300");
        assert_eq!(Segment::parse(&segment.name(), 293), Some(segment));
        let others = [(segment.name(), 292), ("closed".into(), 0), ("7-300".into(), 293), ("9-".into(), 1)];
        for (name, size) in others {
            assert_eq!(Segment::parse(&name, size), None, "{name}");
        }
        assert_eq!(Segment::parse("000000000007-000000000007", 0), None, "empty");
    }

    fn check(all: &[(u64, u64)], picked: &[(u64, u64)]) {
        assert_eq!(chain(of(all)), of(picked), "{all:?}");
    }

    #[test]
    fn a_chain_ends_at_the_first_gap_and_takes_the_longest() {
        check(&[], &[]);
        check(&[(5, 9)], &[]);
        check(&[(0, 4), (4, 9), (10, 12)], &[(0, 4), (4, 9)]);
        check(&[(0, 4), (0, 9), (4, 9), (9, 10)], &[(0, 9), (9, 10)]);
        check(&[(3, 9), (0, 4), (2, 6)], &[(0, 4), (3, 9)]);
        check(&[(0, 4), (4, 5), (2, 8), (5, 8), (8, 9)], &[(0, 4), (2, 8), (8, 9)]);
    }

    #[test]
    fn what_is_pushed_is_merged_now_and_then_and_wholly_at_the_end() {
        let small: Vec<_> = (0..40).map(|n| (n * 10, n * 10 + 10)).collect();
        assert_eq!(merge(&of(&small), 31), None);
        assert_eq!(merge(&of(&small), 40), Some(0..40));
        assert_eq!(merge(&of(&small), 32), Some(0..40), "those before are as small");
        let first = [(0, 5_000), (5_000, 5_100)];
        let tail = (0..32).map(|n| (5_100 + n * 10, 5_110 + n * 10));
        assert_eq!(
            merge(&of(&first.into_iter().chain(tail).collect::<Vec<_>>()), 32),
            Some(1..34),
            "the first is longer"
        );
        let three = [(0, LARGE), (LARGE, 2 * LARGE), (2 * LARGE, 2 * LARGE + 1)];
        assert_eq!(merge(&of(&three), 40), None, "too large together");
        assert_eq!(merge_all(&of(&three)), Vec::<Range<usize>>::new());
        assert_eq!(merge_all(&of(&[(0, 5), (5, 9), (9, LARGE + 8), (LARGE + 8, LARGE + 9)])), [0..2, 2..4]);
    }

    #[test]
    fn only_what_another_one_holds_goes() {
        let all = of(&[(0, 4), (0, 9), (4, 9), (8, 12), (20, 25)]);
        assert_eq!(superfluous(&all, &chain(all.clone())), of(&[(0, 4), (4, 9)]));
    }

    proptest! {
        #[test]
        fn segments_stay_few_whatever_is_pushed(sizes in prop::collection::vec(1..262_144u64, 1..1_500)) {
            let (mut chain, mut fresh, mut moved) = (Vec::<Segment>::new(), 0, 0);
            let total: u64 = sizes.iter().sum();
            for size in sizes {
                let start = chain.last().map_or(0, |last| last.end);
                chain.push(Segment { start, end: start + size });
                fresh += 1;
                if let Some(range) = merge(&chain, fresh) {
                    let merged = Segment { start: chain[range.start].start, end: chain[range.end - 1].end };
                    prop_assert!(merged.len() <= LARGE);
                    moved += merged.len();
                    chain.splice(range, [merged]);
                }
                if fresh >= FRESH {
                    fresh = 0;
                }
                prop_assert!(chain.len() as u64 <= 80 + 2 * total / LARGE, "{}", chain.len());
            }
            prop_assert!(moved <= 12 * total, "{moved} of {total}");
        }
    }
}
