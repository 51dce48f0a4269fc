//! Played last: after all faults no secret may be found on any disk of the testbed.

use crate::work::Stage;

pub(super) async fn no_secret_is_at_rest_anywhere(stage: &Stage, _chaos: bool) -> String {
    let id = stage.submit("steady-1").await;
    stage.people.ended(&id).await;
    stage.settle().await;
    assert_eq!(stage.secrets_at_rest(), Vec::<String>::new());
    String::new()
}
