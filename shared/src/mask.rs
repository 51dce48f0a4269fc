//! Streaming masking of secrets in output: over raw bytes, before lines or characters are told apart.
//!
//! input ─▶ Aho–Corasick ─▶ every occurrence of every form, overlapping ones merged ─▶ `[masked]`
//!
//! What comes out depends on the bytes alone, never on where the chunks were cut: only the longest end of the input
//! that may still become a needle is held back, and masking can begin anew at every offset that it let go. A job can
//! always transform a secret beyond recognition; masking is a courtesy, not a boundary.

mod forms;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton as _, StateID};
use aho_corasick::nfa::contiguous::NFA;

use crate::secret::Secret;

/// What stands in place of a secret, whatever its length.
pub const MASK: &[u8] = b"[masked]";

/// The shortest secret that can be masked, in bytes: shorter ones occur by chance.
pub const SHORTEST_BYTES: usize = 8;

const FEWEST_DISTINCT: usize = 3;

/// A secret that would mask ordinary output all over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mask secret number {number} in output: it {rule}; give it a longer, random value")]
pub struct WeakSecret {
    /// Its place in the list that was given, from 1 on.
    pub number: usize,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Every form in which a set of secrets is looked for.
#[derive(Default)]
pub struct Needles {
    search: Option<Search>,
}

/// The automaton, and per state what masking must know beyond it.
struct Search {
    automaton: NFA,
    root: StateID,
    /// The bytes with which no needle begins.
    idle: [bool; 256],
    /// Length of the longest end of the input that is a beginning, but not the whole, of a needle.
    open: Vec<u32>,
    /// Length of the longest needle that ends here; 0: none.
    found: Vec<u32>,
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Needles([secret])")
    }
}

impl Needles {
    /// Prepares the search for these secrets in all their forms.
    ///
    /// Fails if a secret, without white space around it, is shorter than 8 bytes or has fewer than 3 distinct bytes.
    pub fn new(secrets: &[Secret]) -> Result<Needles, WeakSecret> {
        let mut needles = BTreeSet::new();
        for (index, secret) in secrets.iter().enumerate() {
            if let Some(rule) = weakness(secret.expose().trim().as_bytes()) {
                return Err(WeakSecret { number: index + 1, rule });
            }
            forms::collect(secret.expose(), &mut needles);
        }
        let needles: Vec<Vec<u8>> = needles.into_iter().collect();
        Ok(Needles { search: Search::new(needles) })
    }
}

/// Says which rule a value breaks.
fn weakness(value: &[u8]) -> Option<&'static str> {
    if value.len() < SHORTEST_BYTES {
        return Some("is shorter than 8 bytes");
    }
    let distinct: BTreeSet<u8> = value.iter().copied().collect();
    (distinct.len() < FEWEST_DISTINCT).then_some("has fewer than 3 distinct bytes")
}

impl Search {
    fn new(mut needles: Vec<Vec<u8>>) -> Option<Search> {
        if needles.is_empty() {
            return None;
        }
        needles.sort_by_key(Vec::len);
        // Fails only beyond 2 GiB of needles; nothing would be masked then, so such secrets must not come this far.
        let automaton = NFA::builder().prefilter(false).build(&needles).ok()?;
        let root = automaton.start_state(Anchored::No).ok()?;
        let mut search = Search { automaton, root, idle: [false; 256], open: Vec::new(), found: Vec::new() };
        for byte in 0..=255u8 {
            search.idle[usize::from(byte)] = search.next(root, byte) == root;
        }
        search.learn_beginnings(&needles);
        search.learn_ends(&needles);
        Some(search)
    }

    fn next(&self, state: StateID, byte: u8) -> StateID {
        self.automaton.next_state(Anchored::No, state, byte)
    }

    /// Fills `open` for states that can go on, and `found` for all.
    fn learn_beginnings(&mut self, needles: &[Vec<u8>]) {
        for needle in needles {
            let mut state = self.root;
            for (index, byte) in needle.iter().enumerate() {
                state = self.next(state, *byte);
                let slot = state.as_usize();
                if slot >= self.open.len() {
                    self.open.resize(slot + 1, 0);
                    self.found.resize(slot + 1, 0);
                }
                if index + 1 < needle.len() {
                    self.open[slot] = index as u32 + 1;
                }
                if self.automaton.is_match(state) {
                    let ends = 0..self.automaton.match_len(state);
                    let longest =
                        ends.map(|n| self.automaton.pattern_len(self.automaton.match_pattern(state, n))).max();
                    self.found[slot] = longest.unwrap_or(0) as u32;
                }
            }
        }
        if self.root.as_usize() >= self.open.len() {
            self.open.resize(self.root.as_usize() + 1, 0);
            self.found.resize(self.root.as_usize() + 1, 0);
        }
    }

    /// Fills `open` for needles that are not the beginning of another: as their longest proper end. Shortest first.
    fn learn_ends(&mut self, needles: &[Vec<u8>]) {
        let walk = |bytes: &[u8]| bytes.iter().fold(self.root, |state, byte| self.next(state, *byte)).as_usize();
        let ends: Vec<(usize, usize)> = needles.iter().map(|needle| (walk(needle), walk(&needle[1..]))).collect();
        for (whole, end) in ends {
            if self.open[whole] == 0 {
                self.open[whole] = self.open[end];
            }
        }
    }
}

/// What a masker lets go.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// The masked bytes.
    pub bytes: Vec<u8>,
    /// How many bytes of the input they stand for.
    pub settled: u64,
    /// Where masks stand in `bytes`, and how many bytes of the input each stands for.
    masks: Vec<(usize, u64)>,
}

/// A part of what a masker let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The masked bytes.
    pub bytes: &'a [u8],
    /// How many bytes of the input they stand for. Masking may begin anew behind them.
    pub settled: u64,
}

impl Emitted {
    /// Says whether a secret, or a part of one, stood there.
    pub fn is_masked(&self) -> bool {
        !self.masks.is_empty()
    }

    /// Cuts the bytes into pieces of at most `longest` bytes (at least a mask's length), never within a mask.
    pub fn pieces(&self, longest: usize) -> Vec<Piece<'_>> {
        let longest = longest.max(MASK.len());
        let mut pieces = Vec::new();
        let mut masks = self.masks.iter().peekable();
        let mut from = 0;
        while from < self.bytes.len() {
            let mut to = self.bytes.len().min(from + longest);
            let mut settled = 0;
            while let Some((at, raw)) = masks.next_if(|(at, _)| at + MASK.len() <= to) {
                debug_assert!(*at >= from, "masks are in order and whole");
                settled += raw;
                settled -= MASK.len() as u64;
            }
            if let Some((at, _)) = masks.peek().filter(|(at, _)| *at < to) {
                to = *at;
            }
            settled += (to - from) as u64;
            pieces.push(Piece { bytes: &self.bytes[from..to], settled });
            from = to;
        }
        pieces
    }
}

/// Masks a whole text.
pub fn masked(needles: &Arc<Needles>, text: &str) -> String {
    let mut masker = Masker::new(needles.clone());
    let mut bytes = masker.push(text.as_bytes()).bytes;
    bytes.extend(masker.flush().bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Masks one stream. Streams share needles, never a masker.
pub struct Masker {
    needles: Arc<Needles>,
    state: Option<StateID>,
    held: Vec<u8>,
    /// What must be masked in `held`: ascending, not overlapping.
    regions: Vec<(usize, usize)>,
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Masker(holds {} bytes)", self.held.len())
    }
}

impl Masker {
    /// Begins a stream.
    pub fn new(needles: Arc<Needles>) -> Masker {
        Masker { needles, state: None, held: Vec::new(), regions: Vec::new() }
    }

    /// Takes input and lets go what cannot become part of a needle any more.
    pub fn push(&mut self, input: &[u8]) -> Emitted {
        let from = self.held.len();
        self.held.extend_from_slice(input);
        self.scan(from);
        let open = match (&self.needles.search, self.state) {
            (Some(search), Some(state)) => search.open[state.as_usize()] as usize,
            _ => 0,
        };
        let mut cut = self.held.len() - open;
        if let Some((start, _)) = self.regions.iter().find(|(start, end)| *start < cut && cut < *end) {
            cut = *start;
        }
        self.let_go(cut)
    }

    /// Lets go the rest, at the end of the stream. The next input begins a stream anew.
    pub fn flush(&mut self) -> Emitted {
        self.state = None;
        self.let_go(self.held.len())
    }

    /// Looks for other needles from the first byte on that is still held back.
    pub fn replace(&mut self, needles: Arc<Needles>) {
        self.needles = needles;
        self.state = None;
        self.regions.clear();
        self.scan(0);
    }

    fn scan(&mut self, from: usize) {
        let Some(search) = &self.needles.search else { return };
        let mut state = self.state.unwrap_or(search.root);
        let mut at = from;
        while at < self.held.len() {
            if state == search.root {
                let idle = self.held[at..].iter().position(|byte| !search.idle[usize::from(*byte)]);
                at = idle.map_or(self.held.len(), |skip| at + skip);
                if at == self.held.len() {
                    break;
                }
            }
            state = search.next(state, self.held[at]);
            at += 1;
            let found = search.found[state.as_usize()] as usize;
            if found > 0 {
                let mut start = at - found;
                while let Some((earlier, _)) = self.regions.pop_if(|(_, end)| *end > start) {
                    start = start.min(earlier);
                }
                self.regions.push((start, at));
            }
        }
        self.state = Some(state);
    }

    /// Lets go everything before `cut`, which lies within no region.
    fn let_go(&mut self, cut: usize) -> Emitted {
        let mut out = Emitted { settled: cut as u64, ..Emitted::default() };
        let done = self.regions.iter().take_while(|(_, end)| *end <= cut).count();
        let mut from = 0;
        if done == 0 && cut == self.held.len() {
            out.bytes = std::mem::take(&mut self.held);
            return out;
        }
        out.bytes.reserve(cut);
        for (start, end) in self.regions.drain(..done) {
            out.bytes.extend_from_slice(&self.held[from..start]);
            out.masks.push((out.bytes.len(), (end - start) as u64));
            out.bytes.extend_from_slice(MASK);
            from = end;
        }
        out.bytes.extend_from_slice(&self.held[from..cut]);
        self.held.drain(..cut);
        for (start, end) in &mut self.regions {
            *start -= cut;
            *end -= cut;
        }
        out
    }
}

#[cfg(test)]
mod tests;
