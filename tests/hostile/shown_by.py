"""Which test shows each case B01 to B74, and which are still missing, with the reason.

A test is named as `file::` and its name or the beginning of it; `file::CASE-` is for the cases of a table.
"""

from __future__ import annotations

_DOOR, _HEADS = "hostile/door_cases.py", "hostile/head_cases.py"
_BODIES, _KEYS = "hostile/body_cases.py", "hostile/test_keys.py"
_FIELDS, _LEAVING = (
    "hostile/test_fields.py::test_a_value_is_served_or_named",
    "hostile/test_leaving.py",
)
_SLOW, _POOR, _MORE = (
    "hostile/test_slow_senders.py",
    "hostile/test_resources.py",
    "hostile/test_bodies.py",
)
_PARKED, _CUT = "hostile/test_readers_parked.py", "hostile/test_readers_cut.py"
_RESUME, _KEPT = "api/test_resume.py", "api/test_kept_runs.py"

SHOWN_BY: dict[str, tuple[str, ...]] = {
    **{f"B{i:02}": (f"{_DOOR}::B{i:02}-",) for i in range(1, 10)},
    **{f"B{i:02}": (f"{_HEADS}::B{i:02}-",) for i in (10, 11, 15, 16, *range(20, 26))},
    "B12": ("hostile/test_door.py::test_B12_",),
    "B13": (f"{_SLOW}::B13-",),
    "B14": (f"{_SLOW}::B14-", f"{_POOR}::test_B14_"),
    "B17": (f"{_KEYS}::test_B17_",),
    "B18": (f"{_KEYS}::test_B18_",),
    "B19": (f"{_KEYS}::test_B19_",),
    "B26": (f"{_MORE}::test_text_comes_back_as_it_was", f"{_BODIES}::B26-"),
    "B27": (_FIELDS,),
    "B28": (_FIELDS,),
    "B29": (f"{_BODIES}::B29-",),
    "B30": (_FIELDS,),
    "B31": (f"{_BODIES}::B31-",),
    "B32": (f"{_BODIES}::B32-",),
    "B33": (f"{_BODIES}::B33-",),
    "B34": (f"{_BODIES}::B34-",),
    "B35": (_FIELDS, f"{_BODIES}::B35-"),
    "B36": (_FIELDS, f"{_BODIES}::B36-"),
    "B37": (_FIELDS, f"{_MORE}::test_B37_"),
    "B38": (_FIELDS, f"{_BODIES}::B38-"),
    "B39": (_FIELDS, f"{_BODIES}::B39-"),
    "B40": (_FIELDS, f"{_BODIES}::B40-"),
    "B41": (_FIELDS, f"{_BODIES}::B41-"),
    "B42": (_FIELDS, f"{_BODIES}::B42-"),
    "B43": (_FIELDS, f"{_BODIES}::B43-"),
    "B44": (_FIELDS, f"{_MORE}::test_B44_"),
    "B45": (_FIELDS, f"{_BODIES}::B45-"),
    "B46": (_FIELDS, f"{_BODIES}::B46-"),
    "B47": (f"{_BODIES}::B47-", "hostile/test_model_names.py::test_B47_"),
    "B48": (_FIELDS, f"{_BODIES}::B48-"),
    "B49": (
        _FIELDS,
        f"{_MORE}::test_B49_",
        "engine/test_prefix_cache.py::test_salts_share_nothing",
    ),
    "B50": (
        f"{_LEAVING}::test_B50_",
        "engine/test_loop_faults.py::test_who_dies_in_the_middle_of_a_step_is_gone_within_two",
    ),
    "B51": (f"{_LEAVING}::test_B51_",),
    "B52": (f"{_LEAVING}::test_B52_",),
    "B53": (f"{_PARKED}::test_B53_", f"{_CUT}::test_B53_"),
    "B54": (f"{_PARKED}::test_B54_", f"{_CUT}::test_B54_"),
    "B55": ("hostile/test_storm.py::test_B55_",),
    "B56": (
        f"{_LEAVING}::test_B56_",
        "engine/test_engine.py::test_an_abort_of_the_preempted_and_of_the_unknown",
        "engine/test_engine.py::test_an_abort_in_any_phase_leaves_at_once",
        "engine/test_engine_machine.py::TestEngine",
    ),
    "B57": (f"{_MORE}::test_B57_", f"{_LEAVING}::test_B21_"),
    "B58": (
        f"{_RESUME}::test_a_foreign_stream_is_as_one_that_does_not_exist",
        f"{_RESUME}::test_other_last_ids_are_refused",
        f"{_RESUME}::test_an_event_that_is_no_longer_kept_is_not_found",
        f"{_RESUME}::test_only_an_id_as_it_was_sent_is_read",
    ),
    "B59": (
        f"{_KEPT}::test_over_the_cap_the_one_goes_that_lost_its_reader_first",
        f"{_KEPT}::test_its_bytes_are_always_those_of_what_it_holds",
    ),
    "B60": (
        f"{_MORE}::test_B60_",
        "engine/test_prefix_cache.py::test_siblings_share_at_once_within_one_step",
    ),
    "B61": (
        "properties/test_crowds.py::test_a_reply_does_not_depend_on_the_others",
        "hostile/fuzz/test_fuzz.py::test_traces",
        "engine/test_prefix_cache.py::test_blocks_of_an_aborted_sequence_stay_findable_as_far_as_computed",
    ),
    "B62": ("engine/test_scheduler.py::test_a_long_prompt_stalls_no_decode_and_fills_the_budget",),
    "B63": (
        f"{_MORE}::test_B63_",
        "engine/test_scheduler.py::test_the_oldest_gives_way_to_reserved_blocks_rather_than_stall",
    ),
    "B64": (
        "engine/test_scheduler.py::test_what_can_never_fit_is_refused_at_submit",
        "runner/test_memory.py::test_one_full_sequence_always_fits_or_it_is_an_error",
    ),
    "B65": (
        "test_tokenizer.py::test_never_half_a_character",
        "api/test_plain.py::test_a_text_of_half_characters_is_replaced",
        "api/test_choice_stream.py::test_joined_pieces_are_the_decoded_text",
    ),
    "B66": (
        "api/test_choice_stream.py::test_a_stop_string_cuts_the_same_text_however_the_steps_come",
        "properties/test_streams.py::test_a_stop_string_is_cut_wherever_chunks_divide_it",
    ),
    "B67": (
        "properties/test_usage.py::test_usage_counts_the_tokens_of_all_choices",
        "properties/test_usage.py::test_continuous_usage_grows_to_the_last_chunks",
    ),
    "B68": (
        "engine/test_isolation.py::test_a_failed_row_takes_nobody_along",
        "runner/test_row_faults.py::test_nan_in_a_row_stays_there",
    ),
    "B69": (
        "runner/test_row_faults.py::test_what_raises_for_a_row_fails_it_alone",
        "chaos/test_kills.py::test_every_stream_survives_every_death",
    ),
    "B70": ("runner/test_row_faults.py::test_memory_that_is_gone_fails_no_row",),
    "B71": (
        "ipc/test_server.py::test_a_bad_frame_ends_its_connection_only",
        "ipc/test_server.py::test_a_truncated_frame_holds_up_nobody",
        "ipc/test_client.py::test_garbage_from_the_engine_ends_the_connection",
        "ipc/test_wire.py::test_an_announced_length_above_the_cap_is_refused_before_its_bytes_arrive",
    ),
    "B72": (
        "test_serve_end.py::test_sigterm_lets_streams_end_also_through_a_death_of_the_engine",
        "test_serve_end.py::test_a_second_signal_does_not_wait_for_streams",
        "test_supervisor.py::test_a_second_sigterm_ends_at_once_unless_it_is_the_first_one_again",
    ),
    "B73": (
        f"{_POOR}::test_B73_",
        "test_restart_policy.py::test_after_a_pause_of_our_own_a_child_has_all_its_time_again",
    ),
    "B74": (f"{_POOR}::test_B74_",),
}

MISSING: dict[str, str] = {}
