//! One HTTP call to GitLab: tried again where that is safe, bounded in size and time, its failures put in our words.
//!
//! A refused credential (401, 403) is never tried again: GitLab shuts an address out after thirty of those. A call that
//! changes something is tried again only when GitLab says that it did nothing (429); its caller looks before the next.

use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::secret::Secret;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LINK, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use tokio::time::{Instant, sleep};

use super::super::ForgeError;
use super::super::text::one_line;

/// The largest answer that is taken.
const ANSWER_LIMIT_BYTES: usize = 32 << 20;
/// How much of what GitLab says stands in an error, in characters.
const DETAIL_CHARS: usize = 300;

/// How often and how long a call is tried.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often at most.
    pub tries: u32,
    /// The pauses between.
    pub backoff: Backoff,
    /// How long one try may take. GitLab gives itself 30 s to fetch what a CI configuration includes.
    pub timeout: Duration,
    /// The longest pause that GitLab may ask for; a longer one is left to the caller.
    pub longest_wait: Duration,
    /// After this time no further try begins.
    pub total: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tries: 4,
            backoff: Backoff { first: Duration::from_millis(500), ceiling: Duration::from_secs(8) },
            timeout: Duration::from_secs(60),
            longest_wait: Duration::from_secs(30),
            total: Duration::from_secs(120),
        }
    }
}

/// A call.
pub(super) struct Call<'a> {
    /// What is done, for errors: fits after "failed to".
    pub(super) action: String,
    /// What a token needs for it, in GitLab's words.
    pub(super) needs: &'a str,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) body: Option<serde_json::Value>,
}

/// An answer of 2xx.
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    headers: HeaderMap,
}

impl Answer {
    /// Returns the address of the next page, if there is one.
    pub(super) fn next_page(&self) -> Option<&str> {
        let links = self.headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        links.flat_map(|value| value.split(',')).find_map(|link| {
            let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next")).then_some(address)
        })
    }
}

/// A failure, with the status where there was an answer.
pub(super) struct Failure {
    pub(super) status: Option<StatusCode>,
    pub(super) error: ForgeError,
}

impl From<Failure> for ForgeError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// Speaks HTTP to one GitLab.
pub(super) struct Client {
    http: reqwest::Client,
    /// `https://host/prefix/api/v4`.
    api: Url,
    token: Option<Secret>,
    pub(super) pace: Pace,
}

impl Client {
    /// Checks the address and makes the client.
    pub(super) fn new(address: &str, token: Option<Secret>, pace: Pace) -> Result<Self, ForgeError> {
        let refused = |detail: String| ForgeError::Refused { action: "use the forge's address".to_owned(), detail };
        let mut api =
            Url::parse(address).map_err(|error| refused(format!("{error}; write it as https://gitlab.example.org")))?;
        if !matches!(api.scheme(), "http" | "https") {
            return Err(refused("it must begin with https:// or http://".to_owned()));
        }
        if !api.username().is_empty() || api.password().is_some() {
            return Err(refused("it holds a credential; name that in `forge.token` instead".to_owned()));
        }
        api.set_query(None);
        api.set_fragment(None);
        if let Ok(mut segments) = api.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v4"]);
        }
        // The program, or another client, may have been first: there is a provider either way.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("devfleet/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .timeout(pace.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| refused(Chain(&error).to_string()))?;
        Ok(Self { http, api, token, pace })
    }

    /// Returns the address without path, for people.
    pub(super) fn origin(&self) -> String {
        self.api.origin().ascii_serialization()
    }

    /// Returns the login secret.
    pub(super) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Builds an address of the API; segments and values are encoded.
    pub(super) fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Takes an address that an answer names, if it is one of this API: others must not see the token.
    pub(super) fn own_url(&self, address: &str) -> Option<Url> {
        let url = self.api.join(address).ok()?;
        (url.origin() == self.api.origin() && url.path().starts_with(self.api.path())).then_some(url)
    }

    /// Makes a call. What reads is tried again after 429, 5xx and lost answers; what changes something only after 429.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let reads = call.method == Method::GET;
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            let failure = match self.send_once(call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            tries += 1;
            let undone = failure.status == Some(StatusCode::TOO_MANY_REQUESTS);
            if !failure.error.is_retryable() || !(reads || undone) || tries >= self.pace.tries {
                return Err(failure);
            }
            let pause = self.pause(tries, &failure.error);
            if pause > self.pace.longest_wait || begun.elapsed() + pause > self.pace.total {
                return Err(failure);
            }
            tracing::debug!(action = %call.action, tries, ?pause, "asking the forge again");
            sleep(pause).await;
        }
    }

    /// Says how long to wait before the next try: what GitLab asks for, and at least our own pace.
    pub(super) fn pause(&self, tries: u32, error: &ForgeError) -> Duration {
        let own = self.pace.backoff.pause(tries, Backoff::jitter());
        match error {
            ForgeError::Unavailable { retry_after: Some(asked), .. } => own.max(*asked),
            _ => own,
        }
    }

    async fn send_once(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let mut request = self.http.request(call.method.clone(), call.url.clone());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, self.authorization(token)?);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let lost = |error: reqwest::Error| Failure {
            status: error.status(),
            error: ForgeError::Unavailable {
                action: call.action.clone(),
                detail: format!("{}: {}", self.origin(), Chain(&error.without_url())),
                retry_after: None,
            },
        };
        let mut response = request.send().await.map_err(lost)?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > ANSWER_LIMIT_BYTES {
                let detail = format!("the answer is larger than {ANSWER_LIMIT_BYTES} bytes");
                return Err(self.refused(call, status, detail));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            Ok(Answer { body, headers })
        } else {
            Err(self.failure(call, status, &headers, &body))
        }
    }

    fn authorization(&self, token: &Secret) -> Result<HeaderValue, Failure> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| Failure {
            status: None,
            error: ForgeError::Unauthorized {
                forge: self.origin(),
                detail: "it holds characters that no token has, a line break perhaps".to_owned(),
            },
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn refused(&self, call: &Call<'_>, status: StatusCode, detail: String) -> Failure {
        Failure { status: Some(status), error: ForgeError::Refused { action: call.action.clone(), detail } }
    }

    fn failure(&self, call: &Call<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        let detail = self.detail(status, body);
        let action = call.action.clone();
        let error = match status.as_u16() {
            401 => ForgeError::Unauthorized { forge: self.origin(), detail },
            403 => ForgeError::Forbidden { action, detail, needs: call.needs.to_owned() },
            404 => ForgeError::NotFound { action, detail },
            300..=399 => ForgeError::Refused {
                action,
                detail: format!("{detail}: the project or the forge has moved; set its present address and path"),
            },
            408 | 425 | 429 | 500.. => ForgeError::Unavailable { action, detail, retry_after: retry_after(headers) },
            _ => ForgeError::Refused { action, detail },
        };
        Failure { status: Some(status), error }
    }

    /// Puts what GitLab says into one line that holds no token.
    fn detail(&self, status: StatusCode, body: &[u8]) -> String {
        let said = serde_json::from_slice::<serde_json::Value>(body).ok().map(|document| said(&document));
        let mut line = match said.filter(|said| !said.is_empty()) {
            Some(said) if said.starts_with(status.as_str()) => said,
            Some(said) => format!("{}: {said}", status.as_u16()),
            None => status.to_string(),
        };
        if let Some(token) = self.token.as_ref().filter(|token| !token.expose().is_empty()) {
            line = line.replace(token.expose(), "[secret]");
        }
        one_line(&line.replace(char::is_control, " "), DETAIL_CHARS)
    }
}

/// Reads GitLab's several forms: a text, a list of texts, texts by field, `error` and `error_description`.
fn said(document: &serde_json::Value) -> String {
    use serde_json::Value;
    match document {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(said).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            let known = ["message", "error_description", "error", "scope"];
            let picked: Vec<String> =
                known.iter().filter_map(|name| fields.get(*name)).map(said).filter(|text| !text.is_empty()).collect();
            if picked.is_empty() {
                fields.iter().map(|(name, value)| format!("{name} {}", said(value))).collect::<Vec<_>>().join("; ")
            } else {
                picked.join("; ")
            }
        }
        _ => String::new(),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Result<Client, ForgeError> {
        Client::new(address, Some(Secret::new("canary-7d1")), Pace::default())
    }

    #[test]
    fn addresses_are_checked_and_built_with_care() {
        for bad in ["", "gitlab.example.org", "ftp://x", "https://oauth2:canary@x.example"] {
            let error = client(bad).err().expect("it is refused").to_string();
            assert!(!error.contains("canary"), "{error}");
        }
        let client = client("https://x.example/gitlab/").expect("a good address");
        let url = client.url(&["projects", "group/a b", "files", "c#d?.txt"], &[("ref", "é&=")]);
        assert_eq!(
            url.as_str(),
            "https://x.example/gitlab/api/v4/projects/group%2Fa%20b/files/c%23d%3F.txt?ref=%C3%A9%26%3D"
        );
    }

    #[test]
    fn the_token_goes_nowhere_but_to_the_own_api() {
        let client = client("https://x.example/gitlab").expect("a good address");
        assert!(client.own_url("https://x.example/gitlab/api/v4/projects?page=2").is_some());
        for foreign in
            ["https://evil.example/gitlab/api/v4/x", "http://x.example/gitlab/api/v4/x", "https://x.example/y", "//e/x"]
        {
            assert!(client.own_url(foreign).is_none(), "{foreign}");
        }
    }

    #[test]
    fn the_next_page_is_found_among_the_links() {
        let mut headers = HeaderMap::new();
        let links = "<https://x/1>; rel=\"first\", <https://x/2?a=b>; rel=\"next\"";
        headers.insert(LINK, HeaderValue::from_static(links));
        assert_eq!(Answer { body: Vec::new(), headers }.next_page(), Some("https://x/2?a=b"));
        assert_eq!(Answer { body: Vec::new(), headers: HeaderMap::new() }.next_page(), None);
    }

    #[test]
    fn what_gitlab_says_becomes_one_line_without_the_token() {
        let client = client("https://x.example").expect("a good address");
        for (body, expected) in [
            (r#"{"message":"404 Project Not Found"}"#, "404 Project Not Found"),
            (r#"{"message":["one","two"]}"#, "404: one; two"),
            (r#"{"message":{"title":["is too long"]}}"#, "404: title is too long"),
            (
                r#"{"error":"insufficient_scope","error_description":"no","scope":"api"}"#,
                "404: no; insufficient_scope; api",
            ),
            (r#"{"message":"bad token canary-7d1\n here"}"#, "404: bad token [secret] here"),
            ("<html>nothing of use</html>", "404 Not Found"),
            ("", "404 Not Found"),
        ] {
            assert_eq!(client.detail(StatusCode::NOT_FOUND, body.as_bytes()), expected, "{body}");
        }
        assert!(
            client.detail(StatusCode::BAD_REQUEST, format!(r#"{{"error":"{}"}}"#, "é".repeat(900)).as_bytes()).len()
                < 700
        );
    }
}
