//! The one place that writes to standard output and standard error.
//!
//! Text for people passes `harmless` here, all of it, so that no command can forget to. Colours are marked by private
//! characters in the text and become escape sequences (or nothing) only after that.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::failure::CliError;
use super::harmless::harmless;
use super::shape::{Shape, yaml};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    Table,
    /// JSON; streams print one value a line.
    Json,
    /// YAML; streams print one document a value.
    Yaml,
}

/// A colour by its meaning. The characters are private ones of Unicode that nothing else uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is; for table cells, which must all carry the same number of marks.
    Plain,
    /// Fine.
    Good,
    /// Wrong.
    Bad,
    /// Wants attention.
    Attention,
    /// Less important.
    Faint,
    /// More important.
    Strong,
}

const MARKS: [(char, &str); 6] = [
    ('\u{f8d0}', ""),
    ('\u{f8d1}', "\x1b[32m"),
    ('\u{f8d2}', "\x1b[31m"),
    ('\u{f8d3}', "\x1b[33m"),
    ('\u{f8d4}', "\x1b[2m"),
    ('\u{f8d5}', "\x1b[1m"),
];
const RESET: char = '\u{f8df}';

impl Paint {
    /// Marks a text with the colour.
    pub fn on(self, text: &str) -> String {
        format!("{}{text}{RESET}", MARKS[self as usize].0)
    }
}

/// Turns marks into escape sequences, or into nothing.
pub fn paint(text: &str, colour: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut painted = false;
    for character in text.chars() {
        if let Some((_, sequence)) = MARKS.iter().find(|(mark, _)| *mark == character) {
            painted = !sequence.is_empty();
            out.push_str(if colour { sequence } else { "" });
        } else if character == RESET {
            out.push_str(if colour && std::mem::take(&mut painted) { "\x1b[0m" } else { "" });
        } else {
            out.push(character);
        }
    }
    out
}

/// Where and how to print.
#[derive(Debug)]
pub struct Output {
    format: Format,
    stdout_terminal: bool,
    stderr_terminal: bool,
    no_colour: bool,
    spinner: Mutex<Option<ProgressBar>>,
}

impl Output {
    /// Looks at the terminal and at NO_COLOR.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            stdout_terminal: std::io::stdout().is_terminal(),
            stderr_terminal: std::io::stderr().is_terminal(),
            no_colour: std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
                || std::env::var_os("TERM").is_some_and(|term| term == "dumb"),
            spinner: Mutex::new(None),
        }
    }

    /// Returns the format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Says whether standard output is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.stdout_terminal
    }

    /// Says whether a person can be asked: a terminal on both ends and text for people.
    pub fn can_ask(&self) -> bool {
        self.format == Format::Table && self.stdout_terminal && std::io::stdin().is_terminal()
    }

    /// Prints a result: its shape for programs, or its text for people.
    pub fn show(&self, shape: impl FnOnce() -> Shape, text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Table => self.text(&text()),
            Format::Json => self.write(&format!("{}\n", shape().to_json())),
            Format::Yaml => self.write(&yaml::to_yaml(&shape())),
        }
    }

    /// Prints one value of a stream.
    pub fn show_next(&self, shape: impl FnOnce() -> Shape, text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Table => self.text(&text()),
            Format::Json => self.write(&format!("{}\n", shape().to_json_line())),
            Format::Yaml => self.write(&format!("---\n{}", yaml::to_yaml(&shape()))),
        }
    }

    /// Prints text for people, made harmless, ending in a line feed.
    pub fn text(&self, text: &str) -> Result<(), CliError> {
        let shown = paint(&harmless(text), self.stdout_terminal && !self.no_colour);
        let end = if shown.is_empty() || shown.ends_with('\n') { "" } else { "\n" };
        self.write(&format!("{shown}{end}"))
    }

    /// Prints a file's content: exactly when piped, made harmless on a terminal.
    pub fn content(&self, text: &str, painted: impl FnOnce(&str) -> String) -> Result<(), CliError> {
        if self.stdout_terminal { self.text(&painted(text)) } else { self.write(text) }
    }

    /// Writes bytes to standard output as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), CliError> {
        self.quietly(|| {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        })
        .map_err(CliError::Output)
    }

    /// Tells a person something beside the result, on standard error.
    pub fn note(&self, text: &str) {
        let shown = paint(&harmless(text), self.stderr_terminal && !self.no_colour);
        // Nobody is left to tell when standard error is closed.
        let _ = self.quietly(|| writeln!(std::io::stderr().lock(), "{}", shown.trim_end_matches('\n')));
    }

    /// Shows on a terminal what is being waited for; replaces what was shown before.
    pub fn wait_for(&self, what: &str) {
        if !self.stderr_terminal || self.format != Format::Table {
            return;
        }
        let mut spinner = self.spinner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = spinner.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
            bar
        });
        bar.set_message(super::harmless::one_line(&paint(&harmless(what), false), 200));
    }

    /// Takes away what `wait_for` shows.
    pub fn waited(&self) {
        let mut spinner = self.spinner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = spinner.take() {
            bar.finish_and_clear();
        }
    }

    fn write(&self, text: &str) -> Result<(), CliError> {
        self.raw(text.as_bytes())
    }

    fn quietly<T>(&self, print: impl FnOnce() -> T) -> T {
        let spinner = self.spinner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match spinner.as_ref() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_colours_or_nothing() {
        let text = format!("{} and {}", Paint::Good.on("fine"), Paint::Plain.on("plain"));
        assert_eq!(paint(&text, false), "fine and plain");
        assert_eq!(paint(&text, true), "\x1b[32mfine\x1b[0m and plain");
    }

    #[test]
    fn a_foreign_escape_sequence_does_not_survive_painting() {
        let text = Paint::Bad.on("evil \x1b[2J");
        assert_eq!(paint(&harmless(&text), true), "\x1b[31mevil ␛[2J\x1b[0m");
    }
}
