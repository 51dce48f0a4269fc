//! Waiting for a state: looked for again and again, with a bound.

use std::time::Duration;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// Waits for a value, at most for this time.
pub(crate) async fn until<T>(patience: Duration, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let mut looks = tokio::time::interval(LOOK);
    let looking = async {
        loop {
            looks.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    tokio::time::timeout(patience, looking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
