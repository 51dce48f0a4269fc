//! The images of environments: pulled when absent, built once per recipe, kept.
//!
//! An image's cache key covers everything that goes into it: the recipe with its files, the base image's content and
//! user, the platform, and our way of building. The same key means there is nothing to do. However many attempts need
//! an image at once, this process pulls or builds it once, and the others wait.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use devfleet_shared::attempt::FailureReason;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::environment::{PullPolicy, Recipe, RecipeFile};
use devfleet_shared::error::Chain;
use devfleet_shared::id::{Digest, HostId, hex};
use sha2::Digest as _;

use super::{Note, PrivateImages, Pulls, RegistryMirrors, Wanted, host_labels, reason_of};
use crate::engine::{EngineError, ImageBuild, ImageFacts, SharedEngine, label};

/// The name under which all our images stand.
const REPOSITORY: &str = "devfleet/box";
/// How a recipe says that the base image lacks git and every known package manager.
const NO_GIT: &str = "returned a non-zero code: 42";
/// How a recipe says that packages are wanted and the base image has no known package manager.
const NO_PACKAGE_MANAGER: &str = "returned a non-zero code: 43";

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The engine failed: at a pull, a build, or in between.
    #[error("get image {image}")]
    Engine {
        /// The image.
        image: String,
        /// What the engine said.
        #[source]
        source: EngineError,
    },
    /// The image is here and does not serve.
    #[error("use image {image}: {why}")]
    Unusable {
        /// The CI image.
        image: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// It cannot be written down that the image came with a login.
    #[error("remember whose image {image} is")]
    Remember {
        /// The image.
        image: String,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
    /// A file that goes into the image is not there.
    #[error(
        "read {path} for the image's file {name}: install it on this host, or correct the path in the controller's configuration"
    )]
    File {
        /// Its name in the image's recipe.
        name: String,
        /// Its path on this host.
        path: String,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
    /// A file that goes into the image is another than was approved.
    #[error(
        "use {path} for the image's file {name}: it holds {found}, {wanted} was approved; install the approved version on this host, or submit the job again"
    )]
    FileChanged {
        /// Its name in the image's recipe.
        name: String,
        /// Its path on this host.
        path: String,
        /// What was approved.
        wanted: Digest,
        /// What is there.
        found: Digest,
    },
}

impl ImageError {
    /// Returns the class of the failure.
    pub fn reason(&self) -> FailureReason {
        match self {
            ImageError::Engine { source, .. } => reason_of(source),
            ImageError::Unusable { .. } => FailureReason::ImageUnusable,
            ImageError::Remember { .. } => FailureReason::Internal,
            ImageError::File { .. } | ImageError::FileChanged { .. } => FailureReason::ImageBuild,
        }
    }
}

/// An image that is needed.
pub struct ImageRequest<'a> {
    /// What it is made from.
    pub recipe: &'a Recipe,
    /// The CI image, as the recipe's `FROM` names it.
    pub base: Wanted<'a>,
    /// How the CI image may be pulled.
    pub pulls: &'a Pulls,
    /// When, for the label.
    pub created: Timestamp,
    /// Takes lines for the job's log.
    pub note: &'a Note<'a>,
}

/// Gets images, each one once at a time.
pub struct Images {
    engine: SharedEngine,
    host: HostId,
    /// One lock per image that is being made. Locks that nobody holds are dropped.
    flights: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    private: PrivateImages,
    mirrors: RegistryMirrors,
}

impl Images {
    /// Gets images onto this engine, labelled with this host.
    pub fn new(engine: SharedEngine, host: HostId) -> Self {
        Self {
            engine,
            host,
            flights: Mutex::default(),
            private: PrivateImages::default(),
            mirrors: RegistryMirrors::default(),
        }
    }

    /// Remembers across restarts which images came with a login.
    pub fn remembering(self, private: PrivateImages) -> Self {
        Self { private, ..self }
    }

    /// Asks these mirrors before the registries that they stand for.
    pub fn through(self, mirrors: RegistryMirrors) -> Self {
        Self { mirrors, ..self }
    }

    /// Returns the image of a recipe: as it is if one with the same key is here, else built.
    pub async fn ensure(&self, request: &ImageRequest<'_>) -> Result<ImageFacts, ImageError> {
        let base = self.present(&request.base, request.pulls, request.note).await?;
        let key = request.recipe.on(&base.id, user_of(&base), request.base.platform);
        let tag = format!("{REPOSITORY}:{}", &key.hex()[..24]);
        if let Some(image) = self.with_key(&tag, &key).await? {
            return Ok(image);
        }
        let lock = self.flight(&tag);
        let _turn = match lock.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                (request.note)("waiting for another job that builds the same image");
                lock.lock().await
            }
        };
        match self.with_key(&tag, &key).await? {
            Some(image) => Ok(image),
            None => self.build(request, &base, &key, tag).await,
        }
    }

    /// Returns an image by name: as it is here, or pulled, as the project's policy says.
    pub async fn present(&self, wanted: &Wanted<'_>, pulls: &Pulls, note: &Note<'_>) -> Result<ImageFacts, ImageError> {
        let policy = pulls.policy_of(wanted);
        match (self.own(wanted, pulls).await?, policy) {
            (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => return Ok(image),
            (None, PullPolicy::Never) => {
                return Err(ImageError::Unusable {
                    image: wanted.reference.to_owned(),
                    why: "it is not to be pulled (`pull = \"never\"` of the project, or `pull_policy` in its CI configuration), and is not on this host for this platform, or was brought with another project's login; bring it with `docker pull`, or choose another policy",
                });
            }
            (_, PullPolicy::Always) | (None, PullPolicy::IfNotPresent) => {}
        }
        let lock = self.flight(&format!("pull {} {}", wanted.reference, wanted.platform));
        let _turn = lock.lock().await;
        if policy == PullPolicy::IfNotPresent
            && let Some(image) = self.own(wanted, pulls).await?
        {
            return Ok(image);
        }
        note(&format!("pulling image {}", wanted.reference));
        if let Some(mirror) = self.mirrors.name_of(wanted.reference) {
            match self.pull(&Wanted { reference: &mirror, ..*wanted }, pulls).await {
                Ok(image) => return Ok(image),
                Err(error @ ImageError::Remember { .. }) => return Err(error),
                Err(error) => note(&format!("failed to {}; its own registry is asked", Chain(&error))),
            }
        }
        self.pull(wanted, pulls).await
    }

    /// Pulls an image, and remembers first whose it is if that takes a login.
    async fn pull(&self, wanted: &Wanted<'_>, pulls: &Pulls) -> Result<ImageFacts, ImageError> {
        let reference = wanted.reference;
        let login = pulls.login(reference);
        let remember = |name: &str| {
            let failed = |source| ImageError::Remember { image: reference.to_owned(), source };
            self.private.allow(name, &pulls.project).map_err(failed)
        };
        if login.is_some() {
            // Before anybody can find it here.
            remember(reference)?;
        }
        let pulled = self.engine.pull(reference, wanted.platform, login).await;
        let image = pulled.map_err(|source| match is_of_other_platform(&source) {
            true => other_platform(reference),
            false => ImageError::Engine { image: reference.to_owned(), source },
        })?;
        let names = [reference, &image.id];
        if login.is_some() || self.private.is_foreign(&names, &pulls.project) {
            names.into_iter().try_for_each(remember)?;
        }
        if !wanted.accepts(&image.platform) {
            // Docker 20.10 takes an image that its registry has for one platform, whichever was asked for; later ones refuse.
            return Err(other_platform(reference));
        }
        Ok(image)
    }

    /// Returns an image that is here, under its own name or that of a mirror, unless it is for another platform or was
    /// brought with another project's login.
    async fn own(&self, wanted: &Wanted<'_>, pulls: &Pulls) -> Result<Option<ImageFacts>, ImageError> {
        let mirror = self.mirrors.name_of(wanted.reference);
        for name in [Some(wanted.reference), mirror.as_deref()].into_iter().flatten() {
            let found = self.engine.image(name).await;
            let found = found.map_err(|source| ImageError::Engine { image: name.to_owned(), source })?;
            let serves = |image: &ImageFacts| {
                wanted.accepts(&image.platform) && !self.private.is_foreign(&[name, &image.id], &pulls.project)
            };
            if let Some(image) = found.filter(serves) {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    async fn with_key(&self, tag: &str, key: &Digest) -> Result<Option<ImageFacts>, ImageError> {
        let found = self.engine.image(tag).await;
        let found = found.map_err(|source| ImageError::Engine { image: tag.to_owned(), source })?;
        Ok(found.filter(|image| image.labels.get(label::IMAGE_KEY).map(String::as_str) == Some(key.as_str())))
    }

    async fn build(
        &self,
        request: &ImageRequest<'_>,
        base: &ImageFacts,
        key: &Digest,
        tag: String,
    ) -> Result<ImageFacts, ImageError> {
        let files = check_files(request.recipe.files.clone()).await?;
        (request.note)(&format!("building the image on top of {}", request.base.reference));
        let mut labels = host_labels(&self.host);
        labels.insert(label::ROLE.into(), "image".into());
        labels.insert(label::IMAGE_KEY.into(), key.to_string());
        labels.insert(label::RECIPE.into(), request.recipe.digest.to_string());
        labels.insert(label::CREATED.into(), request.created.0.to_string());
        let build = ImageBuild {
            tag,
            dockerfile: placed(&request.recipe.dockerfile, &base.id),
            arguments: BTreeMap::from([("DEVFLEET_USER".into(), user_of(base).into())]),
            files,
            labels,
            platform: request.recipe.platform.clone(),
        };
        self.engine
            .build(&build, &|line| (request.note)(line))
            .await
            .map_err(|error| build_error(request.base.reference, error))
    }

    fn flight(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = flights.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

fn is_of_other_platform(error: &EngineError) -> bool {
    let says = ["does not match the specified platform", "no matching manifest for"];
    matches!(error, EngineError::Pull { detail, .. } if says.iter().any(|text| detail.contains(text)))
}

fn other_platform(image: &str) -> ImageError {
    let why = "its registry does not have it for the platform that is wanted; correct `docker: platform` of the CI configuration, or choose another image";
    ImageError::Unusable { image: image.to_owned(), why }
}

/// An image without a user runs as root: by number, since small images have no /etc/passwd with the name.
fn user_of(image: &ImageFacts) -> &str {
    if image.user.is_empty() { "0" } else { &image.user }
}

/// Puts a recipe on the image that was found for it, by content: its name may stand for another one by now, or may not be
/// known to the engine at all when a mirror gave it. Behind it stands our label, by which what an aborted build leaves
/// behind is found: the same on every host, so that hosts on one engine share the layers. What names this host goes onto
/// the finished image.
fn placed(dockerfile: &str, base: &str) -> String {
    let mut text = String::new();
    for line in dockerfile.lines() {
        if line.split_whitespace().next() == Some("FROM") {
            text.extend(["FROM ", base, "\nLABEL ", label::APP, "=", label::APP_VALUE, "\n"]);
        } else {
            text.extend([line, "\n"]);
        }
    }
    text
}

fn build_error(image: &str, error: EngineError) -> ImageError {
    let detail = match &error {
        EngineError::Build { detail, .. } | EngineError::NotRunnable { detail, .. } => detail.as_str(),
        _ => "",
    };
    let no_shell = detail.contains("exec: \"/bin/sh\"") || detail.contains("executable file not found");
    let why = if no_shell {
        "it has no shell (/bin/sh), so no step can run in it; choose a CI image with one"
    } else if detail.contains("exec format error") {
        "it was made for another kind of processor than this host has; choose a CI image for this platform"
    } else if detail.contains("unable to find user root") {
        "it has no root user in /etc/passwd, so nothing can be installed in it; choose a CI image with one"
    } else if detail.contains(NO_GIT) {
        "it has no git, and no package manager that could add it; choose a CI image with git in it"
    } else if detail.contains(NO_PACKAGE_MANAGER) {
        "it has no package manager that could add the packages that the job wants; choose a CI image with them in it"
    } else {
        return ImageError::Engine { image: image.to_owned(), source: error };
    };
    ImageError::Unusable { image: image.to_owned(), why }
}

/// Checks that the files for an image hold what was approved. Reads them whole, so off the async threads.
async fn check_files(files: Vec<RecipeFile>) -> Result<Vec<(String, PathBuf)>, ImageError> {
    let check = move || files.into_iter().map(check_file).collect();
    match crate::blocking::run(check).await {
        Ok(checked) => checked,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn check_file(file: RecipeFile) -> Result<(String, PathBuf), ImageError> {
    match file_digest(&file.host_path) {
        Ok(found) if found == file.digest => Ok((file.name, file.host_path.into())),
        Ok(found) => Err(ImageError::FileChanged { name: file.name, path: file.host_path, wanted: file.digest, found }),
        Err(source) => Err(ImageError::File { name: file.name, path: file.host_path, source }),
    }
}

fn file_digest(path: &str) -> std::io::Result<Digest> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    format!("sha256:{}", hex(&hasher.finalize())).parse().map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_put_on_the_content_that_was_found_with_a_label_behind_it() {
        let text = placed("FROM python:3.11\nRUN FROM y\nUSER a", "sha256:1");
        assert_eq!(text, "FROM sha256:1\nLABEL devfleet.app=devfleet\nRUN FROM y\nUSER a\n");
    }

    #[test]
    fn build_failures_that_a_person_can_act_on_are_told_apart() {
        let reason =
            |detail: &str| build_error("x", EngineError::Build { tag: "t".into(), detail: detail.into() }).reason();
        assert_eq!(reason("The command '/bin/sh -c :' returned a non-zero code: 42"), FailureReason::ImageUnusable);
        assert_eq!(reason("The command '/bin/sh -c :' returned a non-zero code: 43"), FailureReason::ImageUnusable);
        assert_eq!(
            reason("unable to find user root: no matching entries in passwd file"),
            FailureReason::ImageUnusable
        );
        assert_eq!(reason("exec: \"/bin/sh\": stat /bin/sh: no such file or directory"), FailureReason::ImageUnusable);
        assert_eq!(
            reason("standard_init_linux.go:228: exec user process caused: exec format error"),
            FailureReason::ImageUnusable
        );
        assert_eq!(reason("returned a non-zero code: 100"), FailureReason::ImageBuild);
    }

    #[test]
    fn a_file_is_compared_with_what_was_approved() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent");
        std::fs::write(&path, b"agent").expect("a file");
        let file = |digest| RecipeFile { name: "agent".into(), host_path: path.display().to_string(), digest };
        assert!(check_file(file(Digest::of(b"agent"))).is_ok());
        let changed = check_file(file(Digest::of(b"other"))).expect_err("another content");
        assert!(matches!(&changed, ImageError::FileChanged { .. }) && changed.to_string().contains("approved"));
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(check_file(file(Digest::of(b"agent"))), Err(ImageError::File { .. })));
    }
}
