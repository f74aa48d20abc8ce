//! What every store must do, written once and run on every backend: a failure reads `sqlite::append_is_idempotent`.
//!
//! A behaviour is an `async fn(Place)`. One that is not in the list below is dead code, and the compiler says so.

mod all_records;
mod audit;
mod credentials;
mod deleted_keys;
mod end_users;
mod feed;
mod keys;
mod ledger;
mod nodes;
mod only_postgres;
mod only_sqlite;
mod place;
mod prices;
mod private_postgres;
#[path = "../gateway/support/spare.rs"]
mod spare;
mod tenants;
mod texts;
mod usage_totals;

/// Generates one module of tests per backend.
macro_rules! run_on {
    ($backend:ident; $($group:ident: $($behaviour:ident)+;)+) => {
        mod $backend {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $behaviour() {
                    crate::$group::$behaviour(crate::place::Place::$backend().await).await;
                }
            )+)+
        }
    };
}

macro_rules! behaviours {
    ($backend:ident) => {
        run_on! {
            $backend;
            keys:
                an_absent_key_is_none
                a_created_key_reads_back_exactly
                texts_read_back_exactly
                nul_in_a_text_is_refused
                a_key_needs_its_workspace
                a_rate_above_the_plan_is_refused
                a_key_must_hold_the_scope_of_its_kind
                an_id_is_used_once
                a_secret_opens_one_key
                many_keys_at_once_stand_or_fall_one_by_one
                a_key_that_moves_brings_its_past
                names_are_unique_per_resource_and_workspace
                a_name_is_free_after_delete
                of_two_creates_at_once_one_wins
                a_patch_changes_what_it_names
                an_inner_none_clears
                an_empty_patch_succeeds
                a_patch_cannot_take_the_scope_of_the_kind
                a_patch_is_held_to_the_plan_only_for_its_rate
                a_patch_cannot_take_a_name
                what_is_absent_cannot_be_changed
                a_deleted_key_is_gone
                lists_are_newest_first_and_paged
                lists_are_filtered
                an_external_id_belongs_to_one_live_key_of_a_workspace
                a_request_that_is_repeated_makes_one_key
                search_ignores_case_and_knows_no_wildcards
                search_follows_changes
                a_new_secret_keeps_the_old_one_until_told
                a_grace_that_is_over_keeps_nothing
                a_rehash_replaces_one_digest
                workspaces_do_not_see_each_others_keys;
            deleted_keys:
                a_deleted_key_comes_back_as_it_was
                a_deleted_key_comes_back_within_its_time_only
                what_stands_against_a_return_is_told
                a_secret_given_to_another_key_does_not_come_back
                deleted_keys_are_listed_by_themselves;
            tenants:
                an_absent_plan_or_workspace_is_none
                a_plan_reads_back_exactly
                a_plan_id_is_used_once
                a_patched_plan_keeps_the_rest
                a_lowered_plan_leaves_keys_alone
                a_plan_in_use_stays
                a_plan_can_come_back
                plans_are_listed_by_id
                a_workspace_is_made_once
                callers_at_once_that_make_one_workspace_draw_one_number
                a_workspace_needs_a_plan
                put_makes_and_changes_a_workspace
                workspaces_are_listed_newest_first
                a_workspace_with_keys_is_deleted_by_force_only
                a_deleted_workspace_comes_back_only_when_somebody_says_so
                a_plan_that_keeps_no_deleted_keys_keeps_none_of_a_workspace
                grants_add_up_end_by_themselves_and_can_be_taken_back
                a_granted_rate_allows_keys_above_the_plan
                a_grant_is_for_a_limit_of_the_plan_and_there_are_not_too_many;
            end_users:
                a_known_end_user_is_the_same_again
                a_full_plan_admits_the_known_only
                of_a_thousand_at_once_the_quota_passes
                one_newcomer_many_times_at_once_is_one
                deletion_makes_room
                an_end_user_needs_a_workspace_and_a_sound_name
                names_are_exact
                end_users_that_move_keep_their_ids
                end_users_are_listed_newest_first_and_paged
                workspaces_do_not_see_each_others_end_users;
            feed:
                an_empty_store_has_no_changes
                numbers_strictly_increase
                only_what_changed_comes
                the_first_load_comes_in_order
                a_plan_goes_after_the_workspaces_that_left_it
                a_deleted_key_is_a_tombstone
                a_forgotten_end_user_stays_a_tombstone
                a_key_comes_with_its_credentials
                a_refused_write_draws_no_number
                usage_and_newcomers_draw_no_number
                batches_are_bounded
                a_receiver_that_goes_ends_the_feed
                a_reopened_store_is_as_it_was
                a_pepper_is_recognised
                a_pepper_in_use_cannot_be_missing;
            ledger:
                an_empty_batch_is_nothing
                append_is_idempotent
                an_overlapping_batch_counts_once
                records_read_back_exactly
                numbers_too_large_are_cut_and_nul_is_replaced
                nothing_in_a_record_keeps_it_out
                totals_of_a_range_are_exact_to_the_microsecond
                a_key_that_was_idle_for_years_is_read_like_any_other
                a_search_looks_only_so_far_and_says_so
                records_go_when_their_plan_says_and_figures_stay
                retention_is_each_workspaces_own
                a_clock_that_is_ahead_deletes_nothing
                a_key_without_usage_has_zeroes
                stats_count_by_outcome
                response_times_are_of_answers_only
                days_begin_at_midnight
                a_record_knows_its_key_by_id_only
                a_deleted_key_keeps_its_usage
                a_key_knows_its_usage
                charts_have_a_point_per_window_with_usage
                charts_end_before_to_and_begin_with_the_window_of_from
                logs_are_newest_first_and_paged
                cursors_walk_every_record_once
                logs_are_filtered
                workspaces_do_not_see_each_others_usage
                spending_follows_the_windows
                spending_follows_the_calendar_of_the_plan
                spending_is_summed_per_workspace
                spending_has_tokens_and_cost
                spending_of_nothing_is_nothing
                a_receiver_that_goes_ends_the_spending;
            usage_totals:
                totals_of_a_workspace_are_of_its_keys
                sums_that_are_too_large_stay_at_the_largest
                a_replayed_ledger_reproduces_every_total
                groups_are_paged_and_end_users_have_their_names
                groups_that_are_too_large_stay_at_the_largest;
            credentials:
                credentials_are_replaced_by_what_they_are_for_and_reach_the_feed_encrypted
                a_credential_of_a_workspace_needs_it_and_goes_with_it;
            prices:
                prices_are_replaced_as_a_whole_and_reach_the_feed;
            all_records:
                all_records_come_once_by_their_ids
                all_records_are_filtered
                all_records_leave_out_what_retention_hides
                records_of_keys_that_did_not_move_go_when_their_plan_says
                records_without_a_key_go_once_no_workspace_keeps_their_day
                records_that_move_count_once;
            audit:
                every_act_leaves_a_line
                an_update_says_from_what_to_what
                no_line_holds_a_digest
                a_refused_act_leaves_no_line
                lines_belong_to_a_workspace_or_the_platform
                lines_are_filtered_and_paged;
            nodes:
                a_node_is_known_by_its_last_report
                a_node_that_leaves_is_forgotten
                reports_draw_no_number
                a_keys_number_is_that_of_its_newest_write;
            texts:
                a_text_with_nul_is_found_nowhere
                nul_in_what_tokens_say_is_replaced
                nul_in_a_hint_is_refused;
        }
    };
}

behaviours!(sqlite);
behaviours!(postgres);
