//! Exit codes: what scripts branch on. The table here is the one in `--help` and in docs/cli.md.

use devfleet_proto::v1;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// All went well; the job succeeded.
    pub const OK: Exit = Exit(0);
    /// The job failed, or anything that no other code stands for.
    pub const FAILED: Exit = Exit(1);
    /// The command line, or something in a file it names, is wrong.
    pub const USAGE: Exit = Exit(2);
    /// What was named does not exist.
    pub const NOT_FOUND: Exit = Exit(3);
    /// No token, a wrong one, or one whose role does not allow this.
    pub const DENIED: Exit = Exit(4);
    /// The controller cannot be reached or did not answer in time.
    pub const UNREACHABLE: Exit = Exit(5);
    /// Things are not in a state that allows this: a digest that changed, a job that has ended.
    pub const CONFLICT: Exit = Exit(6);
    /// The agent finished and had changed nothing.
    pub const NO_CHANGE: Exit = Exit(10);
    /// A person must say more first.
    pub const NEEDS_HUMAN: Exit = Exit(11);
    /// The proposal was rejected.
    pub const REJECTED: Exit = Exit(12);
    /// The job was cancelled.
    pub const CANCELLED: Exit = Exit(13);
    /// The job's budget ran out.
    pub const BUDGET: Exit = Exit(14);
    /// The job was lost with its host.
    pub const LOST: Exit = Exit(15);
    /// Ended by Ctrl-C, as shells count it.
    pub const INTERRUPTED: Exit = Exit(130);

    /// Returns the code for the outcome of a job that has ended.
    pub fn of(job: &v1::Job) -> Exit {
        match job.outcome.as_str() {
            "succeeded" => Exit::OK,
            "no-change" => Exit::NO_CHANGE,
            "needs-human" => Exit::NEEDS_HUMAN,
            "rejected" => Exit::REJECTED,
            "cancelled" => Exit::CANCELLED,
            "budget-exhausted" => Exit::BUDGET,
            "lost" => Exit::LOST,
            _ => Exit::FAILED,
        }
    }
}

/// The table of codes, as `--help` shows it.
pub const TABLE: &str = "\
Exit codes:
   0  fine; with `submit --wait` and `jobs watch`: the job succeeded
   1  the job failed, or an error that no other code stands for
   2  wrong usage, or wrong content of a file
   3  not found
   4  not authenticated, or the token's role does not allow it
   5  the controller cannot be reached
   6  conflict: stale digest, job already ended, name taken
  10  the job ended without a change
  11  the job needs a human to say more
  12  the proposal was rejected
  13  the job was cancelled
  14  the job's budget ran out
  15  the job was lost with its host
 130  interrupted by Ctrl-C";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_code() {
        let code = |outcome: &str| Exit::of(&v1::Job { outcome: outcome.into(), ..v1::Job::default() }).0;
        let outcomes =
            ["succeeded", "failed", "no-change", "needs-human", "rejected", "cancelled", "budget-exhausted", "lost"];
        assert_eq!(outcomes.map(code), [0, 1, 10, 11, 12, 13, 14, 15]);
        assert_eq!(code("something-newer"), 1);
    }

    #[test]
    fn the_help_names_every_code() {
        for code in [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 130] {
            assert!(TABLE.lines().any(|line| line.split_whitespace().next() == Some(&code.to_string())), "{code}");
        }
    }
}
