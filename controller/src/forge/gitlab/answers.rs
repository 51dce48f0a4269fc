//! What GitLab answers, as far as it is read: every field may be missing or null, and what is unknown is passed over.

use serde::{Deserialize, Deserializer};

/// Takes `null` for what is missing.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Project {
    pub(super) id: Option<u64>,
    pub(super) path_with_namespace: Option<String>,
    pub(super) default_branch: Option<String>,
    pub(super) http_url_to_repo: Option<String>,
    pub(super) ci_config_path: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) archived: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) permissions: Permissions,
    pub(super) namespace: Option<Namespace>,
}

/// What a project lies in: a group, or a user's own place.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Namespace {
    /// `group` or `user`.
    pub(super) kind: Option<String>,
    pub(super) full_path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Permissions {
    project_access: Option<Access>,
    group_access: Option<Access>,
}

impl Permissions {
    /// Returns the greater of the levels that are said; 30 is a Developer.
    pub(super) fn level(&self) -> Option<u64> {
        [&self.project_access, &self.group_access].into_iter().flatten().filter_map(|access| access.access_level).max()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Access {
    access_level: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Branch {
    pub(super) name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) commit: BranchCommit,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BranchCommit {
    pub(super) id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lint {
    #[serde(deserialize_with = "nullable")]
    pub(super) errors: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) warnings: Vec<String>,
    pub(super) merged_yaml: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) includes: Vec<LintInclude>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LintInclude {
    pub(super) location: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MergeRequestAnswer {
    pub(super) iid: Option<u64>,
    pub(super) web_url: Option<String>,
    pub(super) title: Option<String>,
    pub(super) description: Option<String>,
    pub(super) state: Option<String>,
    pub(super) source_branch: Option<String>,
    pub(super) target_branch: Option<String>,
    pub(super) source_project_id: Option<u64>,
    pub(super) target_project_id: Option<u64>,
    pub(super) sha: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    pub(super) body: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Version {
    pub(super) version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OwnToken {
    pub(super) scopes: Option<Vec<String>>,
}

/// A CI variable. Has no `Debug`: it holds a value.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Variable {
    pub(super) key: Option<String>,
    pub(super) value: Option<String>,
    pub(super) variable_type: Option<String>,
    pub(super) environment_scope: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) protected: bool,
}
