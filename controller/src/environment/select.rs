//! Which job stands for the development environment: a score with its reasons, by what a job's script does.
//!
//! What the script runs counts most, then the names of job and stage, then how the job is run. Images that only ship or
//! check things are no candidates. Equal scores: the default image, then the one most jobs use, then the higher version.

pub(super) mod pins;
mod score;
mod without;

use std::collections::{BTreeMap, BTreeSet};

use super::follow::Follower;
use super::images::{self, ImageName};
use super::job::{self, Fact, Job, Variant, Written};
use super::merged::Document;
use super::purpose::Purpose;
use super::variables::Variables;
use super::yaml::Node;
use super::{Alternative, Context, DerivationError, Verdict, fallback, gone, language};
use score::Judgement;
use without::{guessed, idle, no_image, nothing_usable, special, without_image};

/// How many jobs are looked at.
const MAX_JOBS: usize = 2_000;
/// How many jobs are looked at for the files that they start.
const MAX_FOLLOWED_JOBS: usize = 200;
/// How many alternatives are worth telling.
const MAX_ALTERNATIVES: usize = 10;
/// How much more a job without a usable image has to have to count for more than one with it.
const CLEARLY_BETTER: i64 = 20;

/// The chosen job and why.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) job: Job<'a>,
    pub(super) variant: Variant,
    pub(super) image: ImageName,
    pub(super) written: Written,
    /// Where the image stands; nowhere if it was guessed.
    pub(super) fact: Option<Fact<'a>>,
    pub(super) reasons: Vec<String>,
    pub(super) alternatives: Vec<Alternative>,
    /// Other jobs that run tests, the best first.
    pub(super) siblings: Vec<(Job<'a>, Variant)>,
    /// A job before this one that does nothing but install dependencies, in the same image.
    pub(super) installer: Option<Job<'a>>,
    /// Jobs that this one needs and that build something.
    pub(super) builders: Vec<&'a str>,
    /// The versions that the repository pins, by language.
    pub(super) pins: BTreeMap<&'static str, String>,
    /// The program that the job is chosen for.
    pub(super) tool: Option<String>,
    pub(super) notes: Vec<String>,
    pub(super) confidence: f64,
    pub(super) verdict: Verdict,
}

/// What is known of a job's image.
#[derive(Debug)]
enum Image<'a> {
    None,
    Usable(Found<'a>),
    Infrastructure(Found<'a>, &'static str),
    Unresolved { written: String, resolved: String, detail: String },
}

#[derive(Debug, Clone)]
struct Found<'a> {
    name: ImageName,
    written: Written,
    fact: Option<Fact<'a>>,
    variant: Variant,
    /// How many images of other versions the matrix has, when nothing says which one counts.
    rivals: usize,
}

#[derive(Debug)]
struct Candidate<'a> {
    job: Job<'a>,
    order: usize,
    judgement: Judgement,
    image: Image<'a>,
    is_default: bool,
    uses: usize,
}

impl<'a> Candidate<'a> {
    fn usable(&self) -> Option<&Found<'a>> {
        match &self.image {
            Image::Usable(found) if self.judgement.worth() => Some(found),
            _ => None,
        }
    }

    fn rank(&self) -> (i64, bool, usize) {
        (self.judgement.score, self.is_default, self.uses)
    }
}

/// Chooses a job.
pub(super) fn choose<'a>(document: &'a Document, context: &Context) -> Result<Choice<'a>, DerivationError> {
    let pins = pins::read(&context.repository_files);
    let choice = chosen(document, context, &pins)?;
    Ok(Choice { pins, ..choice })
}

fn chosen<'a>(
    document: &'a Document,
    context: &Context,
    pins: &BTreeMap<&'static str, String>,
) -> Result<Choice<'a>, DerivationError> {
    let mut candidates = candidates(document, context, pins)?;
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for found in candidates.iter().filter_map(Candidate::usable) {
        *uses.entry(found.name.to_string()).or_default() += 1;
    }
    for candidate in &mut candidates {
        candidate.uses = candidate.usable().and_then(|found| uses.get(&found.name.to_string())).copied().unwrap_or(0);
    }
    candidates.sort_by(|one, two| two.rank().cmp(&one.rank()).then(one.order.cmp(&two.order)));
    let best = best_usable(&candidates);
    let limit = best.map_or(i64::MIN, |best| best.judgement.score + CLEARLY_BETTER);
    let stronger = candidates.iter().find(|candidate| {
        candidate.usable().is_none()
            && candidate.judgement.purpose >= Purpose::Build
            && candidate.judgement.score > limit
    });
    let mut notes = Vec::new();
    let chosen = match (stronger, best) {
        (Some(stronger), best) => {
            without_image(stronger, best, &candidates, &mut notes).ok_or_else(|| no_image(stronger, pins))
        }
        (None, Some(best)) => best.usable().cloned().map(|found| (best, found)).ok_or_else(|| no_image(best, pins)),
        (None, None) => Err(nothing_usable(document, &candidates, pins)),
    };
    let guess = |error: DerivationError| {
        let first = stronger.or_else(|| candidates.iter().find(|candidate| candidate.judgement.worth()));
        let first = first.or(candidates.first()).ok_or_else(|| error.clone())?;
        let tool = first.judgement.tool.clone().filter(|tool| language::of_tool(tool).is_some());
        let tool = tool.or_else(|| score::speaking(&first.job)).or(first.judgement.tool.clone());
        let guess = fallback::guess(tool.as_deref(), &context.repository_files, pins).ok_or(error.clone())?;
        Ok((first, guess, error))
    };
    match chosen {
        Ok((chosen, found)) => Ok(finish(chosen, found, &candidates, notes)),
        Err(error) if let Some((only, found)) = idle(&candidates) => {
            notes.push(format!(
                "no job does anything that could be recognised; the image is that of job {:?} ({error})",
                only.job.name
            ));
            Ok(finish(only, found, &candidates, notes))
        }
        Err(error) if let Some((only, found)) = special(&candidates) => {
            notes.push(format!(
                "{error}. Until then the image of job {:?} is taken, the only one that checks anything",
                only.job.name
            ));
            let mut choice = finish(only, found, &candidates, notes);
            choice.verdict = Verdict::Fallback;
            choice.confidence = choice.confidence.min(0.3);
            Ok(choice)
        }
        Err(error) => {
            let (first, guess, error) = guess(error)?;
            notes.push(format!("{error}. Until then the image is a guess from {}", guess.source));
            Ok(guessed(first, guess, &candidates, notes))
        }
    }
}

/// The files that the jobs start and that are not known.
pub(super) fn followed(document: &Document, files: &BTreeMap<String, String>) -> Vec<String> {
    let mut follower = Follower::new(files);
    for (name, map) in document.jobs().filter(|(name, _)| !name.starts_with('.')).take(MAX_FOLLOWED_JOBS) {
        let job = Job::new(document, name, map);
        follower.start();
        for (text, _) in job.lines("before_script").iter().chain(&job.lines("script")) {
            follower.split(text);
        }
    }
    follower.missing()
}

/// Judges every job that runs something here.
fn candidates<'a>(
    document: &'a Document,
    context: &Context,
    pins: &BTreeMap<&'static str, String>,
) -> Result<Vec<Candidate<'a>>, DerivationError> {
    let mut hidden = Vec::new();
    let mut elsewhere = false;
    let mut candidates = Vec::new();
    for (order, (name, map)) in document.jobs().enumerate() {
        let job = Job::new(document, name, map);
        if name.starts_with('.') {
            hidden.push(name.to_owned());
        } else if job.runs() {
            if candidates.len() >= MAX_JOBS {
                let what = "the number of jobs".to_owned();
                return Err(DerivationError::TooLarge { file: document.main(), what, limit: MAX_JOBS });
            }
            let (image, is_default) = image_of(&job, context, pins)?;
            let found = if let Image::Usable(found) = &image { Some(&found.name) } else { None };
            let judgement = score::judge(&job, found, pins, &context.repository_files);
            candidates.push(Candidate { job, order, judgement, image, is_default, uses: 0 });
        } else {
            elsewhere |= ["trigger", "run"].iter().any(|keyword| job.keyword(keyword).is_some());
        }
    }
    let detail = || match document.incomplete {
        true => {
            format!("no job in {} has a script of its own, and what it includes could not be read", document.main())
        }
        false => format!("no job in {} runs a script here", document.main()),
    };
    match (candidates.is_empty(), hidden.is_empty()) {
        (false, _) => Ok(candidates),
        _ if elsewhere || document.incomplete => {
            Err(DerivationError::NoImage { detail: detail(), hint: pins::hint(pins) })
        }
        (true, true) => Err(DerivationError::NoJobs { file: document.main() }),
        (true, false) => {
            hidden.truncate(8);
            Err(DerivationError::OnlyHidden { file: document.main(), hidden })
        }
    }
}

/// Finds a job's image; of a matrix the variant that a developer would want. Also says whether it is the default image.
fn image_of<'a>(
    job: &Job<'a>,
    context: &Context,
    pins: &BTreeMap<&'static str, String>,
) -> Result<(Image<'a>, bool), DerivationError> {
    let Some(fact) = job.inherited("image") else { return Ok((Image::None, false)) };
    let Some(written) = job::image(fact.node) else { return Ok((Image::None, false)) };
    let default = if fact.origin == job.name { job.default_image() } else { None };
    let mut unresolved = None;
    let mut found: Vec<Found<'a>> = Vec::new();
    for variant in job.variants() {
        let mut variables = Variables::new(job, &variant, context);
        let resolved = variables.expand_image(&written.name)?;
        match ImageName::parse(&resolved) {
            Ok(name) => {
                drop(variables);
                let written = written.clone();
                found.push(Found { name, written, fact: Some(fact), variant, rivals: 0 });
            }
            Err(problem) => {
                let missing: Vec<&str> = variables.undefined.iter().map(String::as_str).collect();
                let detail = match missing.is_empty() {
                    true => problem.to_owned(),
                    false => format!("{problem}; not set in the CI file: {}", missing.join(", ")),
                };
                unresolved.get_or_insert(Image::Unresolved { written: written.name.clone(), resolved, detail });
            }
        }
    }
    let default_name = match default.and_then(job::image) {
        Some(default) => ImageName::parse(&Variables::new(job, &[], context).expand_image(&default.name)?).ok(),
        None => None,
    };
    let Some(best) = best_variant(found, default_name.as_ref(), pins) else {
        return Ok((unresolved.unwrap_or(Image::None), false));
    };
    let is_default = fact.origin != job.name || default_name.as_ref() == Some(&best.name);
    match best.name.infrastructure() {
        Some(why) => Ok((Image::Infrastructure(best, why), is_default)),
        None => Ok((Image::Usable(best), is_default)),
    }
}

/// The pinned version, else the one of the default image, else the highest of the image that most variants use, else the first.
fn best_variant<'a>(
    found: Vec<Found<'a>>,
    default: Option<&ImageName>,
    pins: &BTreeMap<&'static str, String>,
) -> Option<Found<'a>> {
    let pinned = |found: &Found<'_>| {
        let versions: Vec<Vec<u64>> = found.variant.iter().map(|(_, value)| images::version(value)).collect();
        pins::matches(pins, &found.name, &versions)
    };
    let versions = |found: &Found<'_>| -> (Vec<u64>, Vec<Vec<u64>>) {
        (found.name.version(), found.variant.iter().map(|(_, value)| images::version(value)).collect())
    };
    let uses: BTreeMap<String, usize> = found.iter().fold(BTreeMap::new(), |mut uses, found| {
        *uses.entry(found.name.repository.clone()).or_default() += 1;
        uses
    });
    let rank = |found: &Found<'_>| {
        let usual = uses.get(&found.name.repository).copied().unwrap_or(0);
        let default = default == Some(&found.name);
        (pinned(found) == Some(true), default, !found.name.is_foreign(), usual, versions(found))
    };
    let names: BTreeSet<ImageName> = found.iter().map(|found| found.name.clone()).collect();
    let mut best: Option<Found<'a>> = None;
    for one in found {
        if best.as_ref().is_none_or(|best| rank(&one) > rank(best)) {
            best = Some(one);
        }
    }
    let settled = best.as_ref().is_some_and(|best| pinned(best) == Some(true));
    best.map(|best| Found { rivals: if settled { 0 } else { names.len() - 1 }, ..best })
}

/// The best candidate; among equals of one image repository the highest version.
fn best_usable<'c, 'a>(candidates: &'c [Candidate<'a>]) -> Option<&'c Candidate<'a>> {
    let top = candidates.iter().find(|candidate| candidate.usable().is_some())?;
    let repository = &top.usable()?.name.repository;
    let mut best = top;
    for candidate in candidates.iter().filter(|candidate| candidate.rank() == top.rank()) {
        let (Some(one), Some(other)) = (candidate.usable(), best.usable()) else { continue };
        let kept = |name: &ImageName| gone::successor(name).is_none();
        let newer = (kept(&one.name), one.name.version()) > (kept(&other.name), other.name.version());
        if one.name.repository == *repository && newer {
            best = candidate;
        }
    }
    Some(best)
}

/// How sure the choice is; what speaks against it goes into the notes.
fn certainty<'a>(
    chosen: &Candidate<'a>,
    found: &Found<'a>,
    candidates: &[Candidate<'a>],
    notes: &mut Vec<String>,
) -> (f64, Verdict) {
    let mut confidence: f64 = match chosen.judgement.purpose {
        Purpose::Test => 0.95,
        Purpose::TestScript => 0.8,
        Purpose::EndToEnd | Purpose::Build => 0.6,
        Purpose::Lint => 0.5,
        _ => 0.3,
    };
    if !notes.is_empty() {
        confidence *= 0.7;
    }
    let others = || candidates.iter().filter(|candidate| candidate.order != chosen.order);
    let close = |candidate: &&Candidate<'a>| {
        candidate.judgement.purpose >= Purpose::TestScript && candidate.judgement.score + 12 >= chosen.judgement.score
    };
    let other_language = others().filter(close).find_map(|candidate| {
        let other = candidate.usable()?;
        let (mine, theirs) = (found.name.language()?, other.name.language()?);
        (mine != theirs).then(|| format!("job {:?} tests {theirs} in {}", candidate.job.name, other.name))
    });
    let mut verdict = Verdict::Derived;
    let equal = others().filter(|candidate| candidate.rank() == chosen.rank()).find_map(|candidate| {
        let other = &candidate.usable()?.name;
        (other.repository != found.name.repository).then(|| format!("job {:?} in {other}", candidate.job.name))
    });
    if let Some(other) = equal {
        confidence = confidence.min(0.7);
        verdict = Verdict::Ambiguous;
        notes.push(format!("nothing tells job {:?} from {other}; the first of them was taken", chosen.job.name));
    }
    if found.rivals > 0 {
        confidence = confidence.min(0.7);
        verdict = Verdict::Ambiguous;
        notes.push(format!(
            "the matrix of job {:?} has {} more images; {} was taken, since the repository pins none of them",
            chosen.job.name, found.rivals, found.name
        ));
    }
    if let Some(other) = other_language {
        confidence = confidence.min(0.5);
        verdict = Verdict::Ambiguous;
        notes.push(format!(
            "two languages are tested: job {:?} was taken, and {other}; name an image that has both if the work needs both",
            chosen.job.name
        ));
    }
    if found.name.is_bare() {
        confidence = confidence.min(0.7);
    }
    (confidence, verdict)
}

fn finish<'a>(
    chosen: &Candidate<'a>,
    found: Found<'a>,
    candidates: &[Candidate<'a>],
    mut notes: Vec<String>,
) -> Choice<'a> {
    let (confidence, verdict) = certainty(chosen, &found, candidates, &mut notes);
    let others = || candidates.iter().filter(|candidate| candidate.order != chosen.order);
    let alternatives = others().filter_map(|candidate| {
        let image = candidate.usable()?.name.to_string();
        Some(Alternative { job: candidate.job.name.to_owned(), image, score: candidate.judgement.score })
    });
    let before = |candidate: &&Candidate<'a>| candidate.usable().is_some_and(|other| other.name == found.name);
    let needs = needed(&chosen.job);
    let installer = others().filter(before).find(|candidate| {
        candidate.judgement.purpose == Purpose::Dependencies
            && (candidate.order < chosen.order || needs.iter().any(|name| name == candidate.job.name))
    });
    let builds = |candidate: &&Candidate<'a>| {
        candidate.judgement.purpose == Purpose::Build && needs.iter().any(|name| name == candidate.job.name)
    };
    let installer = installer.map(|candidate| candidate.job);
    let builders = others().filter(builds).map(|candidate| candidate.job.name).take(MAX_ALTERNATIVES).collect();
    let tests = |candidate: &&Candidate<'a>| candidate.judgement.purpose >= Purpose::EndToEnd;
    let siblings = others()
        .filter(tests)
        .filter_map(|candidate| candidate.usable().map(|found| (candidate.job, found.variant.clone())));
    Choice {
        job: chosen.job,
        siblings: siblings.take(MAX_ALTERNATIVES).collect(),
        installer,
        builders,
        pins: BTreeMap::new(),
        tool: chosen.judgement.tool.clone(),
        verdict,
        alternatives: alternatives.take(MAX_ALTERNATIVES).collect(),
        reasons: chosen.judgement.reasons.clone(),
        variant: found.variant,
        image: found.name,
        written: found.written,
        fact: found.fact,
        notes,
        confidence,
    }
}

/// The jobs that a job names in `needs` and `dependencies`.
fn needed(job: &Job<'_>) -> Vec<String> {
    let of = |keyword: &str| job.keyword(keyword).and_then(Node::list).unwrap_or_default();
    let name = |node: &Node| node.text().or_else(|| node.get("job").and_then(Node::text));
    of("needs").iter().chain(of("dependencies")).filter_map(name).collect()
}
