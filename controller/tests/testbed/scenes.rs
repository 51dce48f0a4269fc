//! The scenes, in playing order: a fault, and what must be seen while it lasts and after. Every scene ends with
//! `settle`, which checks all invariants.

mod adoption;
mod controllers;
mod engines;
mod forge;
mod hosts;
mod jobs;
mod network;
mod ownership;
mod secrets;
mod store;

use futures_util::future::LocalBoxFuture;

use crate::work::Stage;

/// One scene.
pub(crate) struct Scene {
    /// What must hold, as a sentence.
    pub(crate) name: &'static str,
    /// Its row in docs/faults.md.
    pub(crate) row: &'static str,
    /// Whether it takes so long that only `make chaos` plays it.
    pub(crate) long: bool,
    /// Plays it, at full length if so asked; returns what it measured, for people.
    pub(crate) play: fn(&Stage, bool) -> LocalBoxFuture<'_, String>,
}

/// Makes a scene of an `async fn(&Stage, bool) -> String`.
macro_rules! scene {
    ($row:literal, $length:ident, $play:path) => {
        Scene {
            name: stringify!($play),
            row: $row,
            long: matches!(Length::$length, Length::Long),
            play: |stage, chaos| Box::pin($play(stage, chaos)),
        }
    };
}

/// Who plays a scene.
#[derive(Clone, Copy)]
enum Length {
    /// `make test`.
    Quick,
    /// `make chaos` alone.
    Long,
}

/// All of them.
pub(crate) const SCENES: &[Scene] = &[
    scene!("1", Quick, hosts::a_host_daemon_that_is_killed_again_and_again_loses_nothing),
    scene!("2", Quick, hosts::a_host_daemon_that_is_killed_at_any_moment_of_a_job_finishes_it),
    scene!("37", Quick, hosts::an_engine_that_is_killed_keeps_its_containers),
    scene!("38", Long, hosts::an_engine_that_dies_with_all_its_shims_leaves_no_process),
    scene!("40", Long, hosts::an_engine_that_hangs_is_waited_for),
    scene!("1", Long, adoption::twenty_jobs_survive_their_daemon_and_its_upgrade),
    scene!("37", Long, adoption::an_engine_without_live_restore_costs_an_attempt),
    scene!("39", Long, adoption::a_host_that_starts_anew_leaves_nothing),
    scene!("42", Quick, engines::a_container_whose_making_was_not_answered_is_made_once),
    scene!("41", Quick, engines::an_engine_that_answers_with_errors_is_asked_again),
    scene!("43", Quick, jobs::a_container_that_cannot_be_removed_holds_up_no_job),
    scene!("44", Long, engines::a_disk_without_room_gets_no_new_job),
    scene!("50", Long, jobs::a_fork_bomb_harms_nobody_else),
    scene!("53", Long, jobs::floods_of_output_do_not_delay_the_neighbours),
    scene!("56", Long, jobs::a_job_that_ignores_signals_and_hides_is_removed_whole),
    scene!("4", Quick, controllers::controllers_that_are_killed_lose_no_job_and_charge_no_attempt),
    scene!("5", Quick, controllers::a_leader_that_stands_still_writes_nothing_when_it_goes_on),
    scene!("27", Quick, store::a_member_that_is_killed_is_not_noticed),
    scene!("27", Long, store::a_leading_member_that_stands_still_is_not_noticed),
    scene!("28", Quick, store::a_lease_that_lies_moves_no_job_that_is_proven),
    scene!("30", Quick, store::a_store_that_is_away_costs_time_alone),
    scene!("32", Long, store::a_store_without_room_refuses_jobs_and_finishes_what_runs),
    scene!("34", Long, store::a_history_that_is_compacted_is_read_anew),
    scene!("19", Quick, network::a_partition_shorter_than_the_freeze_is_not_noticed),
    scene!("19", Quick, ownership::a_partition_longer_than_the_freeze_costs_time_alone),
    scene!("19", Long, ownership::a_partition_of_half_a_minute_moves_a_job_at_most_once),
    scene!("19", Long, ownership::a_partition_of_minutes_fences_what_it_cut_off),
    scene!("20", Long, ownership::a_partition_of_one_way_is_one_of_both),
    scene!("6", Long, ownership::a_host_daemon_that_stands_still_is_frozen_by_its_watchdog),
    scene!("7", Quick, ownership::the_job_of_a_host_that_died_goes_on_elsewhere),
    scene!("26", Long, ownership::most_hosts_silent_at_once_lose_nothing),
    scene!("21", Quick, network::a_flapping_link_causes_no_thrashing),
    scene!("22", Quick, network::lost_packets_cost_time_alone),
    scene!("25", Quick, network::a_slow_link_full_of_log_lines_keeps_the_session),
    scene!("64", Quick, forge::a_merge_request_whose_answer_was_lost_is_opened_once),
    scene!("64", Quick, forge::a_push_whose_answer_was_lost_is_not_made_twice),
    scene!("64", Quick, forge::a_forge_that_fails_for_a_while_delays_the_result),
    scene!("58", Quick, secrets::no_secret_is_at_rest_anywhere),
];
