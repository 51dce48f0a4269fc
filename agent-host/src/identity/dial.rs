//! Calls of a host that is joining or renewing: they do not wait for ever.

use std::time::Duration;

use devfleet_proto::dial::DialError;

use super::IdentityError;

const CALL_DEADLINE: Duration = Duration::from_secs(10);

impl From<DialError> for IdentityError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::BadUrl(url) => IdentityError::BadUrl { url },
            DialError::Connect { url, source } => IdentityError::Connect { url, source },
        }
    }
}

/// Makes a call that does not wait for ever.
pub(super) fn with_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}
