//! A CI configuration as large as the largest that projects write.

use std::fmt::Write as _;

/// About 270 bytes a job; sixty jobs are as large as the largest of the real files in `docs/derivation.md`.
pub(crate) fn configuration(jobs: usize) -> String {
    let mut text = String::from(
        "image: python:3.12\n.base: {before_script: [apt-get update && apt-get install -y libpq-dev, pip install tox], variables: {A: $B, B: c}}\n",
    );
    for job in 0..jobs {
        let _ = writeln!(
            text,
            "test-{job}:\n  extends: .base\n  parallel: {{matrix: [{{V: ['3.9', '3.10', '3.11']}}]}}\n  image: python:$V\n  services: [{{name: 'postgres:16', alias: db}}]\n  \
             rules: [{{if: $CI_COMMIT_BRANCH}}]\n  cache: {{key: $CI_JOB_NAME, paths: [.tox]}}\n  script:\n    - cd app && tox -e py{job}\n    - coverage report"
        );
    }
    text
}
