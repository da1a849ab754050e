"""Every sentence of docs/reference/contract.md is checked by a test, and the tests named here exist."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tools.prose import ROOT

PAGE = ROOT / "docs/reference/contract.md"
_ANCHOR = re.compile(r'<a id="c-([a-z-]+)"></a>')
_SENTENCE_END = re.compile(r"[.!?](?:\*\*)?\s+(?=[A-Z`*<])")

CALLS = "integration/test_api_calls.py"
PLAYED = f"{CALLS}::test_every_guest_gets_the_whole_answer_however_late_initiated_is"
STAND_IN = f"{CALLS}::test_the_simulated_api_follows_the_contract"
REFUSED_UPLOADS = f"{CALLS}::test_uploads_that_the_api_does_not_decode_fail_in_the_api"
ACCEPTANCE = "integration/test_acceptance.py"
SELFIES = "integration/test_selfie_answers.py"
ALBUM = "integration/test_album.py"
BAD = "integration/test_run_bad_input.py"
DETAIL = "integration/test_contract_detail.py::test_the_detail_has_the_fields_of_the_contract"
EARLY = "integration/test_early_selfie.py"
EMBEDDINGS = "integration/test_store_embeddings.py"
FAILED_COMPARISON = f"{BAD}::test_every_failed_comparison_is_an_empty_array_with_a_reason_in_its_detail"
LATE = "integration/test_late_initiated.py"
LEGACY = "integration/test_store_legacy.py"
MESSAGES = "unit/test_messages.py"
PHOTOS = "integration/test_store_photos.py"
RESULTS = "integration/test_store_results.py"
SERVED = f"{BAD}::test_each_way_to_serve_a_photo_leads_to_its_status"
THRESHOLDS = f"{BAD}::test_thresholds_are_strict_and_duplicate_ids_are_removed"
TOPOLOGIES = "integration/test_queue_topologies.py"

# Anchor of a sentence, without c- → the tests that would fail if it were not true.
CHECKED_BY: dict[str, tuple[str, ...]] = {
    "redis-url": (
        "unit/test_queue_client.py::test_every_form_of_url_is_parsed",
        f"{TOPOLOGIES}::test_standalone_with_a_password_and_a_database_number",
        f"{TOPOLOGIES}::test_the_protocol_works_on_redis_cluster",
        f"{TOPOLOGIES}::test_the_whole_protocol_and_a_failover",
    ),
    "database-url": (f"{PHOTOS}::test_a_database_without_the_apis_table_is_refused",),
    "embeddings-url": (
        f"{ACCEPTANCE}::test_photos_and_embeddings_can_be_in_two_databases",
        f"{ACCEPTANCE}::test_upload_match_delete_and_upload_again",
    ),
    "prisma-url": ("unit/test_settings.py::test_a_prisma_url_is_split_into_what_libpq_takes_and_the_schema",),
    "prisma-schema": (
        "integration/test_store_schemas.py::test_a_second_schema_of_a_database_gets_tables_of_its_own",
        "integration/test_store_schemas.py::test_triggers_of_the_apis_table_see_the_schema_of_the_url",
    ),
    "own-settings": ("unit/test_settings.py::test_settings_have_the_documented_defaults",),
    "head": ("integration/test_queue_protocol.py::test_a_claim_moves_jobs_and_counts_the_attempt", STAND_IN),
    "one-object": (f"{MESSAGES}::test_payloads_that_are_not_json_objects_are_rejected",),
    "process-list": (f"{MESSAGES}::test_a_process_job_of_the_api_is_decoded", STAND_IN),
    "compare-list": (f"{MESSAGES}::test_a_compare_job_of_the_api_is_decoded", STAND_IN),
    "photo-id": (SERVED,),
    "not-encoded": ("unit/test_images_urls.py::test_file_names_that_the_api_does_not_encode_are_encoded", PLAYED),
    "file-names": ("integration/test_fetch_guard.py::test_a_file_name_is_requested_as_it_is_stored", STAND_IN),
    "forbidden-is-missing": (SERVED, STAND_IN),
    "album-formats": ("integration/test_run_formats.py::test_photos_and_selfies_of_every_format_match",),
    "upload-fails": (REFUSED_UPLOADS,),
    "megapixels": (
        "unit/test_images_bombs.py::test_a_phone_photo_of_200_megapixels_takes_6_bytes_a_pixel",
        "unit/test_images_decode.py::test_images_are_turned_upright_by_their_exif_orientation",
    ),
    "every-photo": (PLAYED, STAND_IN),
    "thousands": (f"{BAD}::test_a_comparison_with_twenty_thousand_ids_is_answered",),
    "selfie-formats": ("integration/test_run_formats.py::test_photos_and_selfies_of_every_format_match", STAND_IN),
    "selfie-spellings": (
        f"{MESSAGES}::test_selfies_with_a_data_prefix_or_line_breaks_are_decoded",
        f"{MESSAGES}::test_selfies_in_either_base64_alphabet_are_decoded_with_or_without_padding",
    ),
    "threshold-missing": (THRESHOLDS,),
    "threshold-sent": (STAND_IN,),
    "any-moment": (PLAYED, f"{EARLY}::test_selfies_at_several_moments_of_an_upload_get_the_whole_answer"),
    "valid-job": (
        f"{MESSAGES}::test_invalid_fields_are_rejected_with_the_comparison_as_subject",
        f"{MESSAGES}::test_a_payload_without_a_valid_photo_id_is_rejected_without_a_subject",
        f"{MESSAGES}::test_nan_and_infinity_are_rejected",
    ),
    "invalid-job": (f"{BAD}::test_invalid_process_payloads_are_dead_lettered_byte_for_byte",),
    "invalid-subject": (f"{BAD}::test_a_photo_whose_job_has_no_usable_url_fails", FAILED_COMPARISON),
    "initiated": (STAND_IN,),
    "processing": (f"{RESULTS}::test_a_result_goes_from_initiated_to_processing_to_the_answer",),
    "answer": (f"{RESULTS}::test_a_result_goes_from_initiated_to_processing_to_the_answer", THRESHOLDS),
    "detail-key": (f"{LATE}::test_no_key_of_a_comparison_can_be_read_as_the_result_of_another_job", DETAIL),
    "read": (STAND_IN, PLAYED),
    "array": (FAILED_COMPARISON,),
    "push-first": (STAND_IN,),
    "overwritten": (f"{RESULTS}::test_an_initiated_before_any_command_of_a_run_is_overwritten",),
    "ends-with-answer": (
        f"{RESULTS}::test_an_initiated_before_any_command_of_a_run_is_overwritten",
        f"{RESULTS}::test_an_initiated_at_any_moment_of_two_crashes_is_overwritten",
        PLAYED,
    ),
    "repaired": (f"{LATE}::test_a_late_initiated_is_repaired_by_the_next_run_or_sweep", PLAYED),
    "too-late": (f"{RESULTS}::test_an_unconfirmed_entry_expires_with_its_answer",),
    "match": (
        f"{EMBEDDINGS}::test_a_photo_matches_only_strictly_above_the_threshold",
        f"{EMBEDDINGS}::test_the_best_pair_of_faces_counts",
    ),
    "same-model": (f"{EMBEDDINGS}::test_other_models_are_neither_replaced_nor_compared",),
    "precision": (f"{EMBEDDINGS}::test_scores_agree_with_numpy_over_random_albums",),
    "waits": (
        f"{ALBUM}::test_photos_in_progress_park_a_comparison_until_the_last_is_reported",
        "integration/test_contract_detail.py::test_while_an_album_is_processed_the_value_stays_processing",
    ),
    "waiting-detail": (
        "integration/test_contract_detail.py::test_while_an_album_is_processed_the_value_stays_processing",
    ),
    "final": (
        f"{RESULTS}::test_a_redelivered_job_keeps_the_final_answer",
        f"{RESULTS}::test_a_failure_never_replaces_the_answer_of_an_earlier_attempt",
    ),
    "detail-unread": (PLAYED,),
    "matched": (DETAIL,),
    "scores": (DETAIL, f"{EMBEDDINGS}::test_scores_are_cosine_similarities"),
    "matches": (DETAIL, f"{SELFIES}::test_matches_say_which_face_of_the_photo_matches_which_of_the_selfie"),
    "faces-compared": (DETAIL, f"{SELFIES}::test_all_faces_of_a_selfie_are_compared_or_the_largest"),
    "published": (
        f"{SELFIES}::test_an_answer_is_published_when_it_is_written",
        f"{SELFIES}::test_an_answer_is_stored_where_the_user_may_not_publish",
    ),
    "selfie-dropped": (f"{SELFIES}::test_each_failure_of_a_selfie_has_its_code_and_keeps_no_payload",),
    "box": (f"{SELFIES}::test_matches_say_which_face_of_the_photo_matches_which_of_the_selfie",),
    "selfie-codes": (
        f"{SELFIES}::test_each_failure_of_a_selfie_has_its_code_and_keeps_no_payload",
        "integration/test_queue_oversized.py::test_an_oversized_payload_is_dead_lettered_and_its_subject_gets_a_final_status",
    ),
    "faces": (DETAIL,),
    "model": (DETAIL,),
    "requested": (DETAIL,),
    "with-embeddings": (DETAIL,),
    "complete": (
        DETAIL,
        "integration/test_contract_detail.py::test_a_failed_comparison_is_not_complete",
        f"{ALBUM}::test_after_its_timeout_a_comparison_is_answered_with_photos_pending",
    ),
    "pending": (
        DETAIL,
        "integration/test_contract_detail.py::test_a_failed_comparison_is_not_complete",
        f"{ALBUM}::test_after_its_timeout_a_comparison_is_answered_with_photos_pending",
    ),
    "duration-ms": (DETAIL,),
    "initiated-seen": (DETAIL, f"{RESULTS}::test_a_result_goes_from_initiated_to_processing_to_the_answer"),
    "error": (DETAIL, FAILED_COMPARISON),
    "columns": ("integration/test_contract_detail.py::test_a_run_needs_only_id_and_status_of_the_apis_table",),
    "created-at": (
        "integration/test_totals.py::test_a_run_counts_its_jobs_their_stages_and_itself",
        "integration/test_totals.py::test_a_role_that_may_not_read_created_at_stores_photos_without_their_age",
    ),
    "operator-columns": (
        "integration/test_reprocess.py::test_the_url_may_be_a_setting",
        "integration/test_reprocess.py::test_the_columns_are_named_when_one_is_unknown",
        "integration/test_forget.py::test_an_album_is_removed_with_its_embeddings",
    ),
    "statuses": (SERVED, f"{PHOTOS}::test_every_outcome_gives_the_status_of_the_contract"),
    "deleted": (STAND_IN, PLAYED),
    "deleted-stores-nothing": (
        f"{BAD}::test_an_unknown_photo_stores_nothing_and_is_not_dead_lettered",
        f"{BAD}::test_a_prefetched_image_of_a_deleted_photo_is_not_stored",
    ),
    "deleted-embeddings": ("integration/test_store_deletion.py::test_four_deleted_albums_leave_nothing",),
    "success-is-final": (f"{PHOTOS}::test_failure_never_replaces_success",),
    "failed-again": (f"{PHOTOS}::test_beginning_does_not_change_photos_that_have_succeeded",),
    "old-table": (f"{LEGACY}::test_rows_are_imported_normalised_and_comparable",),
    "old-name": ("unit/test_store_legacy.py::test_every_written_name_can_be_parsed",),
    "old-embedding": ("unit/test_store_legacy.py::test_every_written_embedding_can_be_parsed_and_is_normalised",),
    "imported": ("integration/test_moving_in.py::test_the_guide_leads_to_complete_answers_and_back",),
}


@cache
def functions_in(file: str) -> frozenset[str]:
    path = ROOT / "tests" / file
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def statements(text: str) -> list[str]:
    """Return the items, rows and paragraphs of a page below its first section's heading, each on one line."""
    text = re.sub(r"^```.*?^```$", "", text[text.index("\n## ") + 1 :], flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if len(lines) > 1 and lines[1].startswith("|--"):
            found += lines[2:]
        else:
            found += re.split(r"\n(?=- )", "\n".join(lines))
    return [" ".join(statement.split()) for statement in found if statement.strip()]


STATEMENTS = statements(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda text: (_ANCHOR.findall(text) or [text[:40]])[0])
def test_every_sentence_of_the_contract_has_an_anchor_of_its_own(statement: str) -> None:
    assert len(_ANCHOR.findall(statement)) == 1, statement
    if not statement.startswith("|"):
        assert statement.startswith('- <a id="c-')
        assert not _SENTENCE_END.search(statement), "two sentences: give the second one an item and an anchor"


def test_every_sentence_of_the_contract_is_checked() -> None:
    anchors = _ANCHOR.findall(PAGE.read_text(encoding="utf-8"))
    assert len(anchors) == len(set(anchors))
    assert set(anchors) == set(CHECKED_BY)


@pytest.mark.parametrize("anchor", CHECKED_BY)
def test_the_tests_of_a_sentence_exist(anchor: str) -> None:
    assert CHECKED_BY[anchor]
    for node in CHECKED_BY[anchor]:
        file, _, name = node.partition("::")
        assert name in functions_in(file), f"{node} is gone: name the test that checks this sentence now"


def test_sentences_without_an_anchor_or_a_line_of_their_own_are_found() -> None:
    page = [
        "# Page",
        "Introduction.",
        "## One",
        '- <a id="c-a"></a>First. Second.\n- No anchor.',
        "| h |\n|--|\n| row |",
    ]
    found = statements("\n\n".join(page))
    assert found == ['- <a id="c-a"></a>First. Second.', "- No anchor.", "| row |"]
    assert _SENTENCE_END.search(found[0])
