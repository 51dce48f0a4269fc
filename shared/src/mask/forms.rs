//! The forms in which a secret turns up in output: itself, its lines, and what tools make of it.
//!
//! The list follows what GitHub's and Buildkite's maskers look for, and what leaked past them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::{SHORTEST_BYTES, weakness};

/// The line lengths at which `base64` and PEM writers wrap.
const WRAPS: [usize; 2] = [76, 64];

/// Adds every form of a secret.
pub(super) fn collect(value: &str, needles: &mut BTreeSet<Vec<u8>>) {
    let unix = value.replace("\r\n", "\n");
    let mut texts = BTreeSet::from([value.to_owned(), value.trim().to_owned()]);
    texts.extend([unix.clone(), unix.trim().to_owned(), unix.replace('\n', "\r\n")]);
    texts.insert(unix.trim().replace('\n', "\r\n"));
    if unix.trim().contains('\n') {
        let lines = unix.split(['\n', '\r']).map(str::trim);
        texts.extend(lines.filter(|line| weakness(line.as_bytes()).is_none()).map(str::to_owned));
    }
    for text in texts {
        let spelled = spellings(&text).into_iter().map(String::into_bytes);
        needles.extend(spelled.filter(|needle| needle.len() >= SHORTEST_BYTES));
    }
}

fn spellings(text: &str) -> Vec<String> {
    let mut all = vec![text.to_owned()];
    all.extend(json(text));
    all.extend(shell(text));
    all.extend(url(text));
    all.extend(xml(text));
    all.extend(hex(text.as_bytes()));
    all.extend(base64(text.as_bytes()));
    all
}

/// The inside of a JSON string: plain, with `\/`, with everything but ASCII escaped, for HTML, and all that once more.
fn json(text: &str) -> Vec<String> {
    let plain = escape_json(text);
    let ascii = plain.chars().fold(String::new(), |mut out, c| {
        match c.is_ascii() {
            true => out.push(c),
            false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(out, "\\u{unit:04x}")),
        }
        out
    });
    let html = plain.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let mut all = vec![plain.replace('/', "\\/"), ascii, html, plain];
    all.extend(all.clone().iter().map(|once| escape_json(once)));
    all
}

fn escape_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Single quotes in both manners, double quotes, backslashes as of `printf %q`, and `$'…'`.
fn shell(text: &str) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || !c.is_ascii() || "_-./:=@%+,".contains(c);
    let escape = |pick: &dyn Fn(char) -> bool| {
        text.chars().fold(String::new(), |mut out, c| {
            out.extend(pick(c).then_some('\\'));
            out.push(c);
            out
        })
    };
    vec![
        text.replace('\'', r"'\''"),
        text.replace('\'', r#"'"'"'"#),
        escape(&|c| "\"\\$`".contains(c)),
        escape(&|c| !plain(c)),
        escape(&|c| "'\\".contains(c)).replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t"),
    ]
}

/// Percent-encoding as strict writers, forms, `encodeURIComponent` and `encodeURI` do it, in upper and lower case.
fn url(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for kept in ["-._~", "-._~/", "-_.!~*'()", "-_.!~*'();/?:@&=+$,#"] {
        for upper in [true, false] {
            let encoded = percent(text, kept, upper);
            all.push(encoded.replace("%20", "+"));
            all.push(encoded);
        }
    }
    all
}

fn percent(text: &str, kept: &str, upper: bool) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let written = match (byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte), upper) {
            (true, _) => write!(out, "{}", char::from(byte)),
            (false, true) => write!(out, "%{byte:02X}"),
            (false, false) => write!(out, "%{byte:02x}"),
        };
        written.map_or_else(|_| String::new(), |()| out)
    })
}

/// Entities: only what must be, and with quotes as the common writers spell them.
fn xml(text: &str) -> Vec<String> {
    let least = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let double = least.replace('"', "&quot;");
    let single = ["&#39;", "&apos;", "&#x27;", "&#039;"].map(|spelled| double.replace('\'', spelled));
    let mut all = single.to_vec();
    all.extend([double.replace("&quot;", "&#34;").replace('\'', "&#39;"), double, least]);
    all
}

fn hex(bytes: &[u8]) -> [String; 2] {
    let lower = bytes.iter().fold(String::new(), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    });
    [lower.to_uppercase(), lower]
}

/// Both alphabets, at each of the three places in which a value can begin within a group of three bytes; only the
/// characters that the value alone determines. Also the lines of the value encoded alone and wrapped.
fn base64(bytes: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend_from_slice(bytes);
        let determined = (before * 8).div_ceil(6)..padded.len() * 8 / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            all.push(engine.encode(&padded)[determined.clone()].to_owned());
        }
    }
    for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        let whole = engine.encode(bytes);
        let determined = &whole[..bytes.len() * 8 / 6];
        for width in WRAPS.into_iter().filter(|width| determined.len() > *width) {
            let lines = (0..determined.len()).step_by(width);
            all.extend(lines.map(|at| determined[at..determined.len().min(at + width)].to_owned()));
        }
    }
    all
}
