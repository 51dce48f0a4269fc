//! What is done where the job that should count has no image that can be used.

use std::collections::BTreeMap;

use super::super::images;
use super::super::job::Written;
use super::super::merged::Document;
use super::super::purpose::Purpose;
use super::super::{DerivationError, Verdict, fallback};
use super::{Candidate, Choice, Found, Image, finish, pins};

/// A job whose script only prints: its image still stands in the CI file.
pub(super) fn idle<'c, 'a>(candidates: &'c [Candidate<'a>]) -> Option<(&'c Candidate<'a>, Found<'a>)> {
    if candidates.iter().any(|candidate| candidate.judgement.worth()) {
        return None;
    }
    let quiet = |candidate: &&Candidate<'a>| !matches!(candidate.judgement.purpose, Purpose::Forbidden(_));
    candidates.iter().filter(quiet).find_map(|candidate| match &candidate.image {
        Image::Usable(found) => Some((candidate, found.clone())),
        _ => None,
    })
}

/// In a project that is made of what other projects only deploy with (Terraform, Ansible, charts): the job that checks it.
pub(super) fn special<'c, 'a>(candidates: &'c [Candidate<'a>]) -> Option<(&'c Candidate<'a>, Found<'a>)> {
    let tests = |candidate: &Candidate<'_>| {
        candidate.judgement.purpose >= Purpose::TestScript && !matches!(candidate.image, Image::Infrastructure(..))
    };
    if candidates.iter().any(tests) {
        return None;
    }
    candidates.iter().filter(|candidate| candidate.judgement.purpose >= Purpose::Lint).find_map(|candidate| {
        match &candidate.image {
            Image::Infrastructure(found, why) if images::CHECKS.contains(why) => Some((candidate, found.clone())),
            _ => None,
        }
    })
}

/// A choice whose image is a guess.
pub(super) fn guessed<'a>(
    first: &Candidate<'a>,
    guess: fallback::Guess,
    candidates: &[Candidate<'a>],
    notes: Vec<String>,
) -> Choice<'a> {
    let written = Written { name: guess.image.to_string(), ..Written::default() };
    let variant = first.job.variants().into_iter().next().unwrap_or_default();
    let found = Found { name: guess.image, written, fact: None, variant, rivals: 0 };
    let mut choice = finish(first, found, candidates, notes);
    choice.verdict = Verdict::Fallback;
    choice.confidence = choice.confidence.min(if first.judgement.purpose >= Purpose::TestScript { 0.3 } else { 0.15 });
    choice
}

/// The job that should count has no image of its own: it borrows that of a job with the same tool, or gives way.
pub(super) fn without_image<'c, 'a>(
    stronger: &'c Candidate<'a>,
    best: Option<&'c Candidate<'a>>,
    candidates: &'c [Candidate<'a>],
    notes: &mut Vec<String>,
) -> Option<(&'c Candidate<'a>, Found<'a>)> {
    let name = stronger.job.name;
    let problem = match &stronger.image {
        Image::Unresolved { written, detail, .. } => format!("its image `{written}` cannot be resolved ({detail})"),
        Image::Infrastructure(found, why) => format!("its image {} {why}", found.name),
        Image::None | Image::Usable(_) => "it has no image".to_owned(),
    };
    let same_tool = |candidate: &&Candidate<'a>| {
        candidate.usable().is_some() && candidate.judgement.tool == stronger.judgement.tool
    };
    let unresolved = matches!(stronger.image, Image::Unresolved { .. });
    if let Some(lender) = candidates.iter().find(same_tool).filter(|_| !unresolved) {
        let found = lender.usable()?.clone();
        notes.push(format!(
            "job {name:?} runs the tests, but {problem}; the image of job {:?} is taken, which runs the same tool",
            lender.job.name
        ));
        return Some((stronger, found));
    }
    let best = best.filter(|best| {
        best.judgement.purpose >= Purpose::TestScript || (!unresolved && best.judgement.purpose >= Purpose::Build)
    })?;
    notes.push(format!("job {name:?} would come first, but {problem}; job {:?} is taken", best.job.name));
    Some((best, best.usable()?.clone()))
}

pub(super) fn no_image(candidate: &Candidate<'_>, pins: &BTreeMap<&'static str, String>) -> DerivationError {
    let job = candidate.job.name.to_owned();
    match &candidate.image {
        Image::Unresolved { written, resolved, detail } => DerivationError::UnresolvedImage {
            what: "image".to_owned(),
            job,
            written: written.clone(),
            resolved: resolved.clone(),
            detail: detail.clone(),
        },
        Image::Infrastructure(found, why) => DerivationError::NoImage {
            detail: format!("job {job:?} has image {}, which {why}", found.name),
            hint: pins::hint(pins),
        },
        Image::None | Image::Usable(_) => DerivationError::NoImage {
            detail: format!("job {job:?} has none, and nothing gives it one"),
            hint: pins::hint(pins),
        },
    }
}

pub(super) fn nothing_usable(
    document: &Document,
    candidates: &[Candidate<'_>],
    pins: &BTreeMap<&'static str, String>,
) -> DerivationError {
    let unresolved = candidates.iter().find(|candidate| matches!(candidate.image, Image::Unresolved { .. }));
    if let Some(candidate) = unresolved.filter(|candidate| candidate.judgement.worth()) {
        return no_image(candidate, pins);
    }
    let mut names: Vec<&str> = candidates.iter().map(|candidate| candidate.job.name).collect();
    names.truncate(8);
    let with_image = candidates.iter().any(|candidate| !matches!(candidate.image, Image::None));
    let detail = match with_image {
        true => format!(
            "no job in {} installs, builds or tests anything in an image of its own (looked at {})",
            document.main(),
            names.join(", ")
        ),
        false => format!("no job in {} has one (looked at {})", document.main(), names.join(", ")),
    };
    DerivationError::NoImage { detail, hint: pins::hint(pins) }
}
