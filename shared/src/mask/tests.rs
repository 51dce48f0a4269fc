//! Masking against a plain oracle: every occurrence of every form, overlapping ones merged.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::prelude::*;

use super::*;

fn needles(secrets: &[&str]) -> Arc<Needles> {
    let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::new(*text)).collect();
    Arc::new(Needles::new(&secrets).expect("strong secrets"))
}

fn masked(needles: &Arc<Needles>, chunks: &[&[u8]]) -> Vec<u8> {
    let mut masker = Masker::new(needles.clone());
    let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| masker.push(chunk).bytes).collect();
    out.extend(masker.flush().bytes);
    out
}

fn all_forms(secrets: &[String]) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    secrets.iter().for_each(|secret| forms::collect(secret, &mut all));
    all
}

/// Masks in the slowest way that can be read at a glance.
fn oracle(forms: &BTreeSet<Vec<u8>>, text: &[u8]) -> Vec<u8> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for form in forms {
        let starts = text.windows(form.len()).enumerate().filter(|(_, window)| window == form);
        found.extend(starts.map(|(start, _)| (start, start + form.len())));
    }
    found.sort();
    let mut out = Vec::new();
    let mut at = 0;
    let mut found = found.into_iter().peekable();
    while let Some((start, mut end)) = found.next() {
        while let Some((_, other)) = found.next_if(|(start, _)| *start < end) {
            end = end.max(other);
        }
        out.extend_from_slice(&text[at..start]);
        out.extend_from_slice(MASK);
        at = end;
    }
    out.extend_from_slice(&text[at..]);
    out
}

#[test]
fn weak_secrets_are_refused_without_being_shown() {
    for (weak, rule) in
        [("short77", "shorter"), ("  pad77  \n", "shorter"), ("abababababab", "distinct"), ("", "shorter")]
    {
        let refused = Needles::new(&[Secret::new("a-strong-one"), Secret::new(weak)]).expect_err("weak");
        assert_eq!(refused.number, 2);
        assert!(refused.to_string().contains(rule), "{refused}");
        assert!(weak.is_empty() || !refused.to_string().contains(weak.trim()), "{refused}");
    }
}

#[test]
fn a_secret_is_masked_in_every_spelling() {
    let secret = "p&ss'w\"rd/<ü>+ $1\\x";
    let set = needles(&[secret]);
    let json = serde_json::to_string(secret).expect("json");
    let spelled = [
        secret.to_owned(),
        json.clone(),
        serde_json::to_string(&json).expect("json"),
        r#"p&ss'w\"rd\/<ü>+ $1\\x"#.to_owned(),
        r#"p&ss'w\"rd/<\u00fc>+ $1\\x"#.to_owned(),
        r#"p&ss'\''w"rd/<ü>+ $1\x"#.to_owned(),
        r#"p\&ss\'w\"rd/\<ü\>+\ \$1\\x"#.to_owned(),
        "p%26ss%27w%22rd%2F%3C%C3%BC%3E%2B%20%241%5Cx".to_owned(),
        "p%26ss%27w%22rd%2f%3c%c3%bc%3e%2b+%241%5cx".to_owned(),
        "p&amp;ss&#39;w&quot;rd/&lt;ü&gt;+ $1\\x".to_owned(),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
        secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
    ];
    for text in spelled {
        let out = String::from_utf8(masked(&set, &[b"<<", text.as_bytes(), b">>"])).expect("utf-8");
        assert!(out.contains("[masked]"), "{text} -> {out}");
        assert!(!out.contains("rd"), "{text} -> {out}");
    }
}

#[test]
fn base64_is_masked_wherever_the_secret_begins() {
    let secret = "hunter2-correct-horse?>~";
    let set = needles(&[secret]);
    for before in ["", "x", "xy", "xyz", "user:"] {
        for after in ["", "1", "12", ":tail"] {
            let text = format!("{before}{secret}{after}");
            for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                let out = String::from_utf8(masked(&set, &[encoded.as_bytes()])).expect("utf-8");
                assert!(out.contains("[masked]"), "{text} as {encoded} -> {out}");
                assert!(out.len() <= 8 + 4 * (before.len() + after.len()) + 8, "{encoded} -> {out}");
            }
        }
    }
}

#[test]
fn lines_and_other_line_ends_of_a_secret_are_masked() {
    let set = needles(&["first-line-77\nsecond-line-88\n\n}\n"]);
    assert_eq!(masked(&set, &[b"a first-line-77\r\nsecond-line-88\r\n\r\n} b"]), b"a [masked] b");
    assert_eq!(masked(&set, &[b"a first-line-77  second-line-88 b"]), b"a [masked]  [masked] b");
    assert_eq!(masked(&set, &[b"only second-line-88."]), b"only [masked].");
    assert_eq!(masked(&set, &[b"}\nplain\n"]), b"}\nplain\n");
}

#[test]
fn a_long_secret_is_masked_in_wrapped_base64() {
    let secret: String = (0..40).map(|n| format!("line{n}x")).collect();
    let encoded = STANDARD.encode(&secret);
    let lines: Vec<&[u8]> = encoded.as_bytes().chunks(76).collect();
    let out = masked(&needles(&[&secret]), &[&lines.join(&b'\n')]);
    assert!(out.len() < 100, "{}", String::from_utf8_lossy(&out));
}

#[test]
fn a_secret_that_overlaps_itself_does_not_leak_at_a_border() {
    let secret = "aabaabaabc";
    let set = needles(&[secret]);
    let text = format!("aab{secret}aab{secret}{secret}aabaab");
    let whole = masked(&set, &[text.as_bytes()]);
    assert_eq!(whole, b"aab[masked]aab[masked][masked]aabaab");
    for cut in 0..text.len() {
        let (left, right) = text.as_bytes().split_at(cut);
        assert_eq!(masked(&set, &[left, right]), whole, "cut at {cut}");
    }
}

#[test]
fn only_what_may_become_a_needle_is_held_back() {
    let mut masker = Masker::new(needles(&["secret-value-1", "value-1-and-more"]));
    assert_eq!(masker.push(b"hello\n").bytes, b"hello\n");
    assert_eq!(masker.push(b"sec").bytes, b"");
    assert_eq!(masker.push(b"ond secret").bytes, b"second ");
    let waiting = masker.push(b"-value-1");
    assert_eq!((waiting.bytes.as_slice(), waiting.settled), (b"".as_slice(), 0), "the other one may still overlap");
    let done = masker.push(b"!");
    assert_eq!((done.bytes.as_slice(), done.settled), (b"[masked]!".as_slice(), 15));
    masker.push(b"secret-value-1-and-mor");
    assert_eq!(masker.push(b"e").bytes, b"[masked]", "whole needles do not wait for what follows");
}

#[test]
fn needles_that_come_later_apply_to_what_is_held_back() {
    let mut masker = Masker::new(needles(&["early-secret"]));
    assert_eq!(masker.push(b"x early-se").bytes, b"x ");
    masker.replace(needles(&["early-secret", "early-sesame", "later-secret"]));
    assert_eq!(masker.push(b"same later-secret.").bytes, b"[masked] [masked].");
}

#[test]
fn nothing_shows_a_needle_in_debug() {
    let set = needles(&["canary-77-secret"]);
    let mut masker = Masker::new(set.clone());
    masker.push(b"canary-77-secre");
    assert!(!format!("{set:?} {masker:?}").contains("canary"));
}

/// Secrets over few letters, so that they overlap themselves and each other, with the odd line end and quote.
fn secrets() -> impl Strategy<Value = Vec<String>> {
    let strong = |text: &String| weakness(text.trim().as_bytes()).is_none();
    prop::collection::vec("[ab]{0,3}c[ab\"/\n ]{6,14}[abcü]".prop_filter("strong", strong), 1..4)
}

fn texts() -> impl Strategy<Value = (Vec<String>, Vec<u8>, Vec<usize>)> {
    secrets().prop_flat_map(|secrets| {
        let forms: Vec<Vec<u8>> = all_forms(&secrets).into_iter().collect();
        let part = prop_oneof![
            3 => prop::sample::select(forms.clone()),
            2 => (prop::sample::select(forms), 0..20usize).prop_map(|(form, keep)| form[..keep.min(form.len())].to_vec()),
            2 => prop::collection::vec(prop::sample::select(b"abc\n\0\xff=".to_vec()), 0..12),
            1 => prop::collection::vec(any::<u8>(), 0..8),
        ];
        let text = prop::collection::vec(part, 0..10).prop_map(|parts| parts.concat());
        (Just(secrets), text, prop::collection::vec(0..400usize, 0..12))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn no_needle_gets_through_and_the_rest_is_untouched_however_the_input_is_cut((secrets, text, cuts) in texts()) {
        let forms = all_forms(&secrets);
        let set = needles(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
        let expected = oracle(&forms, &text);
        for form in &forms {
            prop_assert!(!expected.windows(form.len()).any(|window| window == form));
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(masked(&set, &chunks), expected.clone());
        let single: Vec<&[u8]> = text.chunks(1).collect();
        prop_assert_eq!(masked(&set, &single), expected);
    }

    #[test]
    fn masking_begins_anew_at_every_settled_offset((secrets, text, cuts) in texts(), longest in 8..20usize) {
        let set = needles(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
        let whole = masked(&set, &[&text]);
        let (mut out, mut at) = (Vec::new(), 0usize);
        for cut in cuts {
            let mut masker = Masker::new(set.clone());
            let emitted = masker.push(&text[at..text.len().min(at + cut)]);
            let pieces = emitted.pieces(longest);
            prop_assert_eq!(pieces.iter().map(|piece| piece.settled).sum::<u64>(), emitted.settled);
            prop_assert_eq!(pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect::<Vec<_>>(), emitted.bytes.clone());
            for piece in pieces.iter().take(1 + cut % 5) {
                prop_assert!(piece.bytes.len() <= longest);
                out.extend_from_slice(piece.bytes);
                at += piece.settled as usize;
            }
        }
        out.extend(masked(&set, &[&text[at..]]));
        prop_assert_eq!(out, whole);
    }
}
