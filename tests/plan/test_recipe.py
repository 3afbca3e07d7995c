"""Plans: the laws, the budget respected, monotonic in it, and refusals before any compute."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from loopline.base.errors import UserError
from loopline.model.config import ModelConfig
from loopline.plan import laws
from loopline.plan.config import BudgetConfig, PlanConfig, ServingConfig
from loopline.plan.recipe import make_plan

PLENTY = {"web": 10**15}
budgets = st.floats(8, 24).map(lambda exponent: 10.0**exponent)


def planned(config: PlanConfig, flops: float, vocab_size: int = 1024, tokens: int = 10**15) -> dict:
    return make_plan(config, flops, vocab_size, {"web": tokens}, {"web": 1.0})


def test_the_laptop_plan_is_the_intended_shape() -> None:
    plan = planned(PlanConfig(over_training=0.176), 1.6e13)
    model = ModelConfig(**plan["model"])
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (128, 4, 4)
    assert (model.num_key_value_heads, model.head_dim, model.intermediate_size) == (2, 32, 352)
    assert model.qk_norm and model.tie_word_embeddings
    assert 2.5e6 < plan["tokens"] < 3.2e6 and plan["batch_tokens"] in (4096, 8192)
    assert plan["learning_rate"] == pytest.approx(3e-3)
    student = ModelConfig(**plan["student"])
    assert 0.3 < student.parameters() / plan["parameters"] < 0.5


@given(budgets, st.floats(0.1, 50))
@settings(max_examples=60)
def test_a_plan_spends_its_budget_and_not_more_at_the_ratio_asked_for_or_refuses(
    flops: float, over_training: float
) -> None:
    config = PlanConfig(over_training=over_training)
    try:
        plan = planned(config, flops)
    except UserError:
        # Only where a vocabulary of 1,024 makes the smallest shape too large, or batches are a large part of it all.
        assert flops < 1.3e12 * over_training
        return
    assert plan["chinchilla_multiple"] == pytest.approx(over_training, rel=0.1)
    assert plan["bounded_by"] == []
    assert plan["flops"] <= flops
    assert plan["flops"] + 6 * plan["parameters"] * plan["batch_tokens"] > flops
    assert plan["tokens"] == plan["steps"] * plan["batch_tokens"]
    assert plan["batch_tokens"] % plan["sequence_length"] == 0
    assert ModelConfig(**plan["model"]).parameters() == plan["parameters"]
    assert ModelConfig(**plan["student"]).parameters() < plan["parameters"]


@pytest.mark.parametrize(
    ("parameters", "tokens", "over_training"),
    [(8.03e9, 15e12, 75), (8.03e9, 15e12, 93.4), (70.6e9, 15e12, 10.6), (405e9, 15.6e12, 1.93), (400e9, 8e12, 1),
     (2e12, 4e13, 1)],
)  # fmt: skip
def test_published_budgets_get_the_over_training_they_ask_for(
    parameters: float, tokens: float, over_training: float
) -> None:
    config = PlanConfig(over_training=over_training, sequence_length=8192, max_position_embeddings=8192)
    flops = laws.training_flops(parameters, tokens)
    plan = planned(config, flops, vocab_size=128_256, tokens=10**15)
    assert plan["chinchilla_multiple"] == pytest.approx(over_training, rel=0.1)
    assert plan["parameters"] == pytest.approx(laws.optimal_parameters(flops, 20 * over_training), rel=0.05)
    model = ModelConfig(**plan["model"])
    assert 60 < model.hidden_size / model.num_hidden_layers < 200


def test_a_ratio_that_cannot_be_reached_is_refused_with_the_one_that_can() -> None:
    with pytest.raises(UserError, match="smallest shape has 4,131,104") as caught:
        planned(PlanConfig(over_training=1), 1e14, vocab_size=128_256)
    reachable = float(str(caught.value).partition("set over_training to ")[2].partition(",")[0])
    plan = planned(PlanConfig(over_training=reachable), 1e14, vocab_size=128_256)
    assert plan["chinchilla_multiple"] == pytest.approx(reachable, rel=0.1)
    with pytest.raises(UserError, match=r"4 whole batches.*lower batch_tokens"):
        planned(PlanConfig(over_training=1, batch_tokens=2**21), 3e13)


@given(budgets, st.floats(1, 100))
@settings(max_examples=60)
def test_a_larger_budget_never_gives_a_smaller_model(flops: float, factor: float) -> None:
    sizes = []
    for budget in (flops, flops * factor):
        try:
            plan = planned(PlanConfig(), budget)
        except UserError:
            return
        sizes.append((plan["parameters"], plan["flops"], plan["batch_tokens"]))
    assert sizes[0][0] <= sizes[1][0] and sizes[0][2] <= sizes[1][2]


@given(st.floats(16, 22).map(lambda exponent: 10.0**exponent), st.floats(1.5, 30))
@settings(max_examples=40)
def test_over_training_trades_parameters_for_tokens(flops: float, dial: float) -> None:
    optimal, over = planned(PlanConfig(), flops), planned(PlanConfig(over_training=dial), flops)
    assert over["parameters"] <= optimal["parameters"]
    assert over["tokens_per_parameter"] >= optimal["tokens_per_parameter"] * 0.99


def test_chinchilla_at_its_own_scale() -> None:
    # Table 3 of Hoffmann et al.: 5.76e23 FLOPs, about 67 billion parameters and 1.5 trillion tokens (r = 22).
    parameters = laws.optimal_parameters(5.76e23, 20)
    assert parameters == pytest.approx(67e9, rel=0.1)
    assert laws.training_flops(parameters, 20 * parameters) == pytest.approx(5.76e23)
    # DeepSeek LLM 67B on 2T tokens used 4,608 sequences of 4,096 tokens and 3.2e-4.
    flops = laws.training_flops(67e9, 2e12)
    assert laws.batch_law(flops) == pytest.approx(4608 * 4096, rel=0.15)
    assert laws.learning_rate_law(flops) == pytest.approx(3.2e-4, rel=0.15)


def test_every_shape_of_the_ladder_is_a_decoder_with_even_proportions() -> None:
    shapes = laws.ladder(32_000, 2048)
    sizes = [model.parameters() for model in shapes]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    for model in shapes:
        assert model.hidden_size % 32 == 0 and model.intermediate_size % 32 == 0
        assert model.num_attention_heads * model.head_dim == model.hidden_size
        assert 2 <= model.intermediate_size / model.hidden_size <= 4


def test_bounds_choose_a_smaller_model() -> None:
    free = planned(PlanConfig(), 1e18)
    for config in (
        PlanConfig(serving=ServingConfig(max_parameters=10_000_000)),
        PlanConfig(serving=ServingConfig(memory_gb=0.03)),
        PlanConfig(device_memory_gb=0.5),
    ):
        bound = planned(config, 1e18)
        assert bound["parameters"] < free["parameters"] and bound["tokens"] > free["tokens"]
        assert len(bound["bounded_by"]) == 1 and free["bounded_by"] == []
    assert planned(PlanConfig(device_memory_gb=0.5), 1e18)["memory"]["training_bytes"] <= 0.5e9
    assert planned(PlanConfig(serving=ServingConfig(memory_gb=0.03)), 1e18)["memory"]["serving_bytes"] <= 0.03e9


@pytest.mark.parametrize(
    ("config", "flops", "tokens", "says"),
    [
        (PlanConfig(), 1e6, 10**9, "less than one batch"),
        (PlanConfig(batch_tokens=1_048_576), 1e11, 10**9, "less than one batch of 1,048,576"),
        (PlanConfig(device_memory_gb=1e-4), 1e15, 10**9, "No model fits"),
        (PlanConfig(serving=ServingConfig(max_parameters=100)), 1e15, 10**9, "serving.max_parameters is 100"),
        (PlanConfig(), 1e15, 1000, "max_epochs allows 4"),
        (PlanConfig(), 1e15, 0, "max_epochs allows 4"),
    ],
)
def test_refuses_the_impossible(config: PlanConfig, flops: float, tokens: int, says: str) -> None:
    with pytest.raises(UserError, match="Fix: ") as caught:
        planned(config, flops, tokens=tokens)
    assert says in str(caught.value)


def test_config_refuses_contradictions() -> None:
    with pytest.raises(ValidationError, match="exactly one of"):
        BudgetConfig()
    with pytest.raises(ValidationError, match="exactly one of"):
        BudgetConfig(flops=1e12, minutes=3)
    with pytest.raises(ValidationError, match="use 1024"):
        PlanConfig(batch_tokens=1000)
    with pytest.raises(ValidationError, match="raise max_position_embeddings"):
        PlanConfig(sequence_length=1024)
