"""Ranks of own captions among all captions."""

import pytest
import torch

from dmd.metrics.retrieval import found, ranks


def test_rank_counts_other_captions_that_are_nearer():
    cosines = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    right = torch.eye(3, dtype=torch.bool)
    assert ranks(cosines, right).tolist() == [1, 3, 2]


def test_best_own_caption_counts_and_own_ones_do_not_stand_in_the_way():
    cosines = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
    assert ranks(cosines, torch.tensor([[False, True, True, False]])).tolist() == [2]
    assert ranks(cosines, torch.tensor([[True, True, True, False]])).tolist() == [1]


def test_network_that_gives_every_pair_the_same_cosine_finds_nothing():
    assert ranks(torch.zeros(4, 10), torch.eye(4, 10, dtype=torch.bool)).tolist() == [10] * 4


def test_random_cosines_find_one_in_as_many_as_there_are_captions():
    cosines = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0))
    right = torch.eye(20, dtype=torch.bool).repeat(200, 1)
    score = found(ranks(cosines, right))
    assert abs(score["top1"] - 1 / 20) < 0.015 and abs(score["top5"] - 5 / 20) < 0.03


def test_image_without_a_caption_is_refused():
    with pytest.raises(ValueError, match="image 1 of the batch has no caption"):
        ranks(torch.zeros(2, 3), torch.tensor([[True, False, False], [False, False, False]]))
