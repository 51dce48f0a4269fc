//! People without a valid token, or with one of the wrong role, get nowhere, and are told what to do.

use devfleet_proto::v1;
use tonic::{Code, Status};

use super::scene::{FIX, SMALL, ci, usual_project};
use crate::support::site::Site;

async fn token(site: &Site, role: &str, ttl_seconds: u64) -> v1::CreateTokenResponse {
    let request = v1::CreateTokenRequest { name: format!("test {role}"), role: role.into(), ttl_seconds };
    site.connection().fleet().create_token(request).await.expect("a token").into_inner()
}

async fn refused(site: &Site, token: &str) -> Status {
    site.connection_with(token).fleet().who_am_i(v1::WhoAmIRequest {}).await.expect_err("it is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_revoked_tokens_are_refused_at_once() {
    let site = Site::usual().await;
    for (wrong, says) in [("nonsense", "dft_"), ("dft_0000000000000000_0000", "devfleet")] {
        let status = refused(&site, wrong).await;
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(says), "{}", status.message());
    }
    let mut tampered = site.token.clone();
    let last = if tampered.ends_with('A') { 'B' } else { 'A' };
    tampered.pop();
    tampered.push(last);
    assert_eq!(refused(&site, &tampered).await.code(), Code::Unauthenticated);

    let made = token(&site, "operator", 0).await;
    let connection = site.connection_with(&made.token);
    connection.fleet().who_am_i(v1::WhoAmIRequest {}).await.expect("it is good");
    site.connection().fleet().revoke_token(v1::RevokeTokenRequest { id: made.id }).await.expect("revoked");
    let status = connection.fleet().who_am_i(v1::WhoAmIRequest {}).await.expect_err("on the same connection, too");
    assert!(status.message().contains("revoked"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused_and_says_when_it_ended() {
    let site = Site::usual().await;
    let made = token(&site, "viewer", 1).await;
    let connection = site.connection_with(&made.token);
    let status = crate::support::site::wait_async("the end of the token", async || {
        connection.fleet().who_am_i(v1::WhoAmIRequest {}).await.err()
    })
    .await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired at 20"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_may_do_what_is_its_own_and_nothing_above() {
    let site = Site::usual().await;
    usual_project(&site, &ci(""), FIX, SMALL).await;
    let viewer = site.connection_with(&token(&site, "viewer", 0).await.token);
    let submitter = site.connection_with(&token(&site, "submitter", 0).await.token);
    let submit = |key: &str| v1::SubmitRequest {
        project: "sample".into(),
        task: "x".into(),
        idempotency_key: key.into(),
        ..Default::default()
    };
    let status = viewer.jobs().submit(submit("a")).await.expect_err("a viewer only looks");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("needs submitter"), "{}", status.message());
    let job = submitter.jobs().submit(submit("b")).await.expect("a submitter submits").into_inner().job.expect("a job");
    let approve = v1::ApproveRequest { job: job.id.clone(), digest: String::new() };
    let status = submitter.jobs().approve(approve).await.expect_err("a submitter does not approve");
    assert_eq!(status.code(), Code::PermissionDenied);
    viewer.jobs().get_job(v1::GetJobRequest { job: job.id.clone() }).await.expect("a viewer looks");
    site.ended(&job.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_lets_one_host_in_once() {
    let site = Site::usual().await;
    let made = site.connection().fleet().create_join_token(v1::CreateJoinTokenRequest::default()).await;
    let token = made.expect("a token").into_inner().token;
    let request = |token: &str| v1::JoinRequest {
        token: token.to_owned(),
        signing_request: devfleet_shared::tls::signing_request().expect("a request").request_pem,
        name: "another".into(),
    };
    let bad = v1::JoinRequest { signing_request: "nonsense".into(), ..request(&token) };
    let status = site.connection().fleet().join(bad).await.expect_err("no request");
    assert_eq!(status.code(), Code::InvalidArgument, "a bad request does not cost the token");
    site.connection().fleet().join(request(&token)).await.expect("the first joins");
    let status = site.connection().fleet().join(request(&token)).await.expect_err("the second does not");
    assert!(status.message().contains("already used"), "{}", status.message());
    let status = site.connection().fleet().join(request("dfj_wrong")).await.expect_err("wrong");
    assert!(status.message().contains("join-token create"), "{}", status.message());
}
