"""Distillation: the losses are the papers', padding is in none, the teacher stays as it was."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch.nn import functional
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from companion.data import Example, Task, batches
from companion.models import Classifier, load
from companion.training import TrainingConfig, fit, predict_logits
from companion.training.callbacks import Callback
from companion.training.distillation import (
    PUBLISHED,
    LanguageDistillation,
    Recipe,
    RegressionDistillation,
    TaskDistillation,
    TeacherCache,
    ask,
    average,
    compression,
    cosine_distance,
    distil,
    evenly_paired,
    every_other_layer,
    fit_mlm_head,
    implied,
    kl_with_temperature,
    logits_at,
    make_student,
    masked_cross_entropy,
    random_student,
    retention,
    same_vocabulary,
    transplant,
)
from companion.training.evaluation import mean_loss

LABELS = ("negative", "positive")
TASK = Task("toy", "accuracy", LABELS, False, "one adjective decides")
SIZES = {"vocab_size": 800, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {**SIZES, "num_hidden_layers": 4, "max_position_embeddings": 64}
DISTILBERT = {"vocab_size": 800, "dim": 32, "n_heads": 2, "hidden_dim": 64, "n_layers": 4}


def seeded(build, *, jitter: float = 0.2):
    """Build a model and shake its weights: as they are initialised, attention hardly looks at anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * jitter)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(encoder_folder: Path):
    return load(encoder_folder, labels=LABELS).tokenizer


@pytest.fixture
def masked_lm():
    return seeded(lambda: BertForMaskedLM(BertConfig(**BERT)))


@pytest.fixture
def classifier_model():
    return seeded(lambda: BertForSequenceClassification(BertConfig(**BERT)))


@pytest.fixture
def teacher(model_folder: Path) -> Classifier:
    return load(model_folder)


def config(**changes) -> TrainingConfig:
    basis = {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 48, "precision": "fp32"}
    return TrainingConfig(**{**basis, **changes})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def first_batch(examples, tokenizer, *, rows: int = 6):
    return next(iter(batches(examples[:rows], tokenizer, batch_size=rows, max_length=48, multiple_of=1)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the losses


def test_the_divergence_is_what_a_hand_computes():
    """Teacher 3/4 and 1/4, student even: 0.75 ln 1.5 + 0.25 ln 0.5, then at T = 2 from twice the logits."""
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert kl_with_temperature(student, teacher, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-6)
    softened = kl_with_temperature(student, 2 * teacher, temperature=2.0)
    assert softened.item() == pytest.approx(4 * by_hand, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_divergence_agrees_with_torch(temperature):
    student, teacher = noise(5, 7), noise(5, 7, seed=1)
    expected = functional.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="sum"
    )
    got = kl_with_temperature(student, teacher, temperature=temperature)
    torch.testing.assert_close(got, expected * temperature**2)
    assert got > 0
    assert kl_with_temperature(student, student, temperature=temperature).item() == 0
    assert kl_with_temperature(student, student + 3.0, temperature=temperature).item() == pytest.approx(
        0, abs=1e-4
    ), "equal distributions: a constant added to all logits changes none"


def test_the_square_of_the_temperature_keeps_the_gradient_at_its_size():
    """For large T the gradient is (z_s - z_t) / n of centred logits (Hinton et al. 2015, equation 4)."""
    teacher = noise(4, 10, seed=1)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    sizes = {}
    for temperature in (10.0, 100.0, 1000.0):
        student = torch.zeros(4, 10, requires_grad=True)
        kl_with_temperature(student, teacher, temperature=temperature).backward()
        sizes[temperature] = student.grad.norm().item()
        if temperature == 1000.0:
            torch.testing.assert_close(student.grad, -teacher / 10, rtol=0.02, atol=1e-3)
    assert sizes[1000.0] == pytest.approx(sizes[10.0], rel=0.15)
    assert sizes[1000.0] == pytest.approx(sizes[100.0], rel=0.02)
    bare = {temperature: size / temperature**2 for temperature, size in sizes.items()}
    assert bare[10.0] / bare[1000.0] > 5000, "without the factor it would have vanished"


def test_the_cosine_is_what_a_hand_computes():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    teacher = torch.tensor([[0.0, 5.0], [1.0, 0.0], [7.0, 0.0], [-1.0, 0.0]])
    assert cosine_distance(student, teacher).item() == pytest.approx(1 + (1 - 1 / math.sqrt(2)) + 0 + 2)
    only = torch.tensor([False, True, False, True])
    assert cosine_distance(student, teacher, only).item() == pytest.approx(3 - 1 / math.sqrt(2))
    reference = functional.cosine_embedding_loss(student, teacher, torch.ones(4), reduction="sum")
    torch.testing.assert_close(cosine_distance(student, teacher), reference)


def test_the_masked_cross_entropy_agrees_with_torch():
    logits, targets = noise(2, 3, 11), torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    expected = functional.cross_entropy(
        logits.flatten(0, 1), targets.masked_fill(~mask, -100).flatten(), reduction="sum"
    )
    torch.testing.assert_close(masked_cross_entropy(logits, targets, mask), expected)


def test_masks_choose_and_teachers_get_no_gradient():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    for loss in (kl_with_temperature, cosine_distance):
        student, teacher = noise(2, 3, 8).requires_grad_(), noise(2, 3, 8, seed=1).requires_grad_()
        value = loss(student, teacher, mask)
        torch.testing.assert_close(value, loss(student[mask], teacher[mask]))
        value.backward()
        assert teacher.grad is None
        assert (student.grad[~mask] == 0).all()
        assert (student.grad[mask] != 0).any()
        assert loss(student.bfloat16(), teacher.bfloat16(), mask).dtype == torch.float32
        assert loss(student, teacher, torch.zeros_like(mask)).item() == 0


def test_shapes_and_temperatures_that_cannot_work_are_named():
    with pytest.raises(ValueError, match=r"student's logits have shape \(2, 3\), the teacher's \(2, 4\)"):
        kl_with_temperature(noise(2, 3), noise(2, 4))
    with pytest.raises(ValueError, match="temperature is 0"):
        kl_with_temperature(noise(2, 3), noise(2, 3), temperature=0)
    with pytest.raises(ValueError, match=r"hidden states have shape.*set its weight to 0"):
        cosine_distance(noise(2, 3), noise(2, 4))


# --- the student


BUILDS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "bert-mlm": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)),
    "roberta-mlm": lambda: RobertaForMaskedLM(RobertaConfig(**BERT)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)),
    "distilbert-mlm": lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT)),
}
STACKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_student_is_its_teacher_with_fewer_layers(name):
    model = seeded(BUILDS[name])
    before, stack = weights(model), STACKS[name.removesuffix("-mlm")]
    student = make_student(model, (3, 0))
    assert type(student) is type(model)
    assert (student.config.num_hidden_layers, model.config.num_hidden_layers) == (2, 4)
    moved = {f"{stack}.0.": f"{stack}.3.", f"{stack}.1.": f"{stack}.0."}
    for key, tensor in student.state_dict().items():
        source = next((key.replace(own, its) for own, its in moved.items() if key.startswith(own)), key)
        assert torch.equal(tensor, before[source]), key
    assert same(before, weights(model))
    owned = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert owned.isdisjoint(tensor.data_ptr() for tensor in student.state_dict().values())
    assert not student.training
    ids = torch.arange(10, 22).reshape(2, 6)
    with torch.no_grad():
        whole = make_student(model, range(4))(ids).logits
        assert torch.equal(whole, model(ids).logits), "all layers: the same function"
        assert not torch.equal(student(ids).logits, whole)


def test_a_random_student_has_the_shape_and_none_of_the_knowledge(masked_lm):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    student = random_student(masked_lm, 2, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert same(weights(student), weights(random_student(masked_lm, 2, seed=1)))
    assert not same(weights(student), weights(random_student(masked_lm, 2, seed=2)))
    made = make_student(masked_lm, (0, 1)).state_dict()
    assert made.keys() == student.state_dict().keys()
    assert not torch.equal(student.get_input_embeddings().weight, masked_lm.get_input_embeddings().weight)
    kept = random_student(masked_lm, 2, seed=1, embeddings=True)
    assert torch.equal(kept.get_input_embeddings().weight, masked_lm.get_input_embeddings().weight)
    assert kept.get_output_embeddings().weight is kept.get_input_embeddings().weight


def test_parameters_are_counted_exactly(masked_lm):
    """One BERT layer 32 wide with 64 inside; tables of 800 tokens, 64 positions, 2 segments."""
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 2 * 32
    tables, head = (800 + 64 + 2) * 32, (32 * 32 + 32) + 2 * 32 + 800
    found = compression(masked_lm, make_student(masked_lm, (0, 2)))
    assert (found.teacher_embeddings, found.student_embeddings) == (tables, tables)
    norm = 2 * 32
    assert found.teacher == tables + norm + 4 * layer + head
    assert found.student == tables + norm + 2 * layer + head
    assert found.factor == found.teacher / found.student
    assert found.factor_without_embeddings == (found.teacher - tables) / (found.student - tables)
    assert found.factor_without_embeddings > found.factor


def test_an_encoder_moves_into_another_head(masked_lm, classifier_model):
    body, into = make_student(masked_lm, (0, 2)), make_student(classifier_model, (1, 3))
    before = weights(into)
    with torch.no_grad():
        body.bert.embeddings.word_embeddings.weight.mul_(2)
    transplant(body, into)
    after = weights(into)
    for name, tensor in after.items():
        theirs = body.state_dict().get(name)
        assert torch.equal(tensor, before[name] if theirs is None else theirs), name
    assert any(not torch.equal(after[name], before[name]) for name in after)
    with pytest.raises(ValueError, match=r"BertForMaskedLM \(4 layers.*different encoders"):
        transplant(masked_lm, into)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "no layers are chosen"),
        ([0, 4], "layer 4 is chosen, but the teacher has 4: expected 0 to 3"),
        ([-1], "layer -1 is chosen"),
        ([1, 1], "name one twice"),
    ],
)
def test_layers_that_cannot_be_taken_are_named(masked_lm, layers, words):
    with pytest.raises(ValueError, match=words):
        make_student(masked_lm, layers)


def test_layers_that_share_their_weights_cannot_be_chosen():
    shared = AlbertForMaskedLM(AlbertConfig(**BERT, embedding_size=16))
    with pytest.raises(ValueError, match="0 lists of 4 layers, expected one"):
        make_student(shared, (0, 1))
    with pytest.raises(ValueError, match="layers is 5, expected 1 to the teacher's 4"):
        random_student(seeded(BUILDS["bert"]), 5, seed=0)


# --- logits at chosen positions


@pytest.mark.parametrize("name", ["bert-mlm", "roberta-mlm", "distilbert-mlm"])
def test_logits_at_some_positions_are_those_of_the_whole_model(name, toy, tokenizer):
    model, batch = seeded(BUILDS[name]), first_batch(toy, tokenizer)
    chosen = batch["attention_mask"].bool() & (batch["input_ids"] % 3 == 0)
    with torch.no_grad():
        whole = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        logits, states = logits_at(model, batch, chosen, hidden_states=True)
        assert logits_at(model, batch, torch.zeros_like(chosen))[0].shape == (0, 800)
        again = model(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(logits, whole.logits[chosen], rtol=1e-4, atol=1e-4)
    assert len(states) == 5
    for own, theirs in zip(states, whole.hidden_states, strict=True):
        assert torch.equal(own, theirs)
    assert torch.equal(again.logits, whole.logits), "nothing is left behind in the model"
    with pytest.raises(ValueError, match="expected a masked language model's head"):
        logits_at(seeded(BUILDS["bert"]), batch, chosen)


# --- the objectives


def language(teacher, tokenizer, **options) -> LanguageDistillation:
    return LanguageDistillation(teacher=teacher, tokenizer=tokenizer, **options)


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_the_triple_loss_is_the_three_losses_over_whole_logits(masked_lm, toy, tokenizer, positions):
    student = make_student(masked_lm, (0, 2))
    objective = language(masked_lm, tokenizer, positions=positions, temperature=3.0)
    batch = objective.prepare(first_batch(toy, tokenizer), generator())
    with torch.no_grad():
        sums = objective.sums(student, batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        own, its = (model(**inputs, output_hidden_states=True) for model in (student, masked_lm))
    real, masked = batch["attention_mask"].bool(), batch["targets"] != -100
    where = real if positions == "all" else masked
    expected = {
        "kl": 9
        * functional.kl_div(
            (own.logits[where] / 3).log_softmax(-1), (its.logits[where] / 3).softmax(-1), reduction="sum"
        ),
        "mlm": functional.cross_entropy(own.logits[masked], batch["targets"][masked], reduction="sum"),
        "cosine": sum(
            1 - functional.cosine_similarity(a, b, dim=0)
            for a, b in zip(own.hidden_states[-1][real], its.hidden_states[-1][real], strict=True)
        ),
    }
    assert sums.keys() == expected.keys() == objective.counts(batch).keys() == objective.weights.keys()
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-4, atol=1e-4)
    assert objective.counts(batch) == {
        "kl": int(where.sum()),
        "mlm": int(masked.sum()),
        "cosine": int(real.sum()),
    }
    assert dict(objective.weights) == {"kl": 5, "mlm": 2, "cosine": 1}


def test_padding_never_matters(masked_lm, classifier_model, toy, tokenizer):
    """More padding, filled with other ids, changes neither sums nor counts of either stage."""
    triple = language(masked_lm, tokenizer)
    task = TaskDistillation(teacher=classifier_model, pairs=evenly_paired(2, 4))
    plain = first_batch(toy, tokenizer)
    assert (plain["attention_mask"] == 0).any()
    for objective, model in ((triple, masked_lm), (task, classifier_model)):
        student = make_student(model, (0, 3))
        batch = objective.prepare(plain, generator())
        wide = {
            name: functional.pad(tensor, (0, 5)) if tensor.ndim == 2 else tensor
            for name, tensor in batch.items()
        }
        if "targets" in wide:
            wide["targets"][:, -5:] = -100
        wide["input_ids"] = torch.where(wide["attention_mask"] == 0, 77, wide["input_ids"])
        with torch.no_grad():
            narrow_sums, wide_sums = objective.sums(student, batch), objective.sums(student, wide)
        assert objective.counts(batch) == objective.counts(wide)
        for name, value in narrow_sums.items():
            torch.testing.assert_close(wide_sums[name], value, rtol=1e-4, atol=1e-4)
            assert value > 0


def test_terms_with_weight_zero_are_left_out(masked_lm, classifier_model, toy, tokenizer):
    for kept in ("kl", "mlm", "cosine"):
        off = {name: 0.0 for name in ("kl", "mlm", "cosine") if name != kept}
        objective = language(masked_lm, tokenizer, **off)
        full = language(masked_lm, tokenizer)
        batch = objective.prepare(first_batch(toy, tokenizer), generator())
        with torch.no_grad():
            sums = objective.sums(make_student(masked_lm, (0, 1)), batch)
            whole = full.sums(make_student(masked_lm, (0, 1)), batch)
        assert list(sums) == list(objective.counts(batch)) == list(objective.weights) == [kept]
        torch.testing.assert_close(sums[kept], whole[kept], rtol=1e-4, atol=1e-4)
    unlabelled = [Example(example.text) for example in toy[:6]]
    objective = TaskDistillation(teacher=classifier_model, hard=0)
    sums = objective.sums(make_student(classifier_model, (0,)), first_batch(unlabelled, tokenizer))
    assert list(sums) == ["kl", "cosine"]
    with pytest.raises(ValueError, match="no labels: set the weight `hard` to 0"):
        TaskDistillation(teacher=classifier_model).prepare(first_batch(unlabelled, tokenizer), generator())


def test_gradients_reach_the_student_only(masked_lm, classifier_model, toy, tokenizer):
    stages = (
        (language(masked_lm, tokenizer), masked_lm),
        (TaskDistillation(teacher=classifier_model), classifier_model),
    )
    for objective, model in stages:
        student = make_student(model, (0, 3))
        model.train()  # as a caller may leave it
        torch.manual_seed(0)
        sums = objective.sums(student, objective.prepare(first_batch(toy, tokenizer), generator()))
        sum(sums.values()).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not model.training, "a teacher with dropout teaches noise"
        missing = {name for name, parameter in student.named_parameters() if parameter.grad is None}
        assert missing == set()


def test_the_teacher_is_asked_at_hidden_states_of_any_layer(classifier_model, toy, tokenizer):
    batch = first_batch(toy, tokenizer)
    taught = ask(classifier_model, batch, (2, -1))
    with torch.no_grad():
        output = classifier_model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert torch.equal(taught.logits, output.logits)
    assert torch.equal(taught.hidden[0], output.hidden_states[2][real])
    assert torch.equal(taught.hidden[1], output.hidden_states[4][real])


def test_layers_are_paired_at_the_same_share_of_the_way():
    assert evenly_paired(3, 6) == ((1, 2), (2, 4), (3, 6))
    assert evenly_paired(6, 12) == tuple((layer, 2 * layer) for layer in range(1, 7))
    assert evenly_paired(2, 5)[-1] == (2, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"kl": -1.0}, "weight kl is -1.0"),
        ({"kl": 0.0, "mlm": 0.0, "cosine": 0.0}, "are all 0"),
        ({"positions": "some"}, "positions is 'some'"),
        ({"pairs": ()}, "no pairs of hidden states"),
    ],
)
def test_choices_that_cannot_work_are_named(masked_lm, tokenizer, options, words):
    with pytest.raises(ValueError, match=words):
        language(masked_lm, tokenizer, **options)


def test_models_that_do_not_fit_together_are_named(masked_lm, classifier_model, toy, tokenizer):
    batch = first_batch(toy, tokenizer)
    narrow = BertForSequenceClassification(BertConfig(**{**BERT, "hidden_size": 16}))
    with pytest.raises(ValueError, match="student is 16 wide, the teacher 32"):
        TaskDistillation(teacher=classifier_model).sums(narrow, batch)
    sums = TaskDistillation(teacher=classifier_model, cosine=0).sums(narrow, batch)
    assert set(sums) == {"kl", "hard"}, "without the cosine a student may be narrower"
    three = BertForSequenceClassification(BertConfig(**BERT, num_labels=3))
    with pytest.raises(ValueError, match="student has 3 labels, the teacher 2"):
        TaskDistillation(teacher=classifier_model).sums(three, batch)
    other = BertForMaskedLM(BertConfig(**{**BERT, "vocab_size": 900}))
    objective = language(masked_lm, tokenizer)
    with pytest.raises(ValueError, match="student has 900 token ids, the teacher 800"):
        objective.sums(other, objective.prepare(batch, generator()))
    deep = TaskDistillation(teacher=classifier_model, pairs=((3, 3),))
    with pytest.raises(ValueError, match="hidden state 3 of the student is paired, but it has 2 layers"):
        deep.sums(make_student(classifier_model, (0, 1)), batch)
    with pytest.raises(ValueError, match="use TaskDistillation"):
        RegressionDistillation(teacher=classifier_model)


def test_tokenizers_that_differ_are_refused(tokenizer, teacher, toy):
    same_vocabulary(tokenizer, teacher.tokenizer)
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["zzyzx"])
    with pytest.raises(ValueError, match="1 of the student's 801 tokens have another id"):
        same_vocabulary(grown, tokenizer)
    with pytest.raises(ValueError, match="the tokenizers differ"):
        distil(teacher, toy[:8], student=replace(teacher, tokenizer=grown))
    untyped = copy.deepcopy(tokenizer)
    untyped.model_input_names = ["input_ids", "attention_mask"]
    with pytest.raises(ValueError, match="where the second begins"):
        same_vocabulary(untyped, tokenizer)


# --- the cache


def test_the_cache_holds_what_the_teacher_says(classifier_model, toy, tokenizer):
    examples = toy[:40]
    cache = TeacherCache.compute(
        classifier_model, tokenizer, examples, layers=(2, -1), max_length=48, batch_size=7, precision="fp32"
    )
    loader = batches(examples, tokenizer, batch_size=9, max_length=48, shuffle=True, seed=3, multiple_of=16)
    for batch in loader:
        cache.check(batch)
        kept, live = cache.taught(batch), ask(classifier_model, batch, (2, -1))
        torch.testing.assert_close(kept.logits, live.logits, rtol=1e-4, atol=1e-4)
        for one, other in zip(kept.hidden, live.hidden, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=2e-3, atol=2e-3)
    assert cache.nbytes > cache.hidden.nbytes > 0
    assert cache.hidden.dtype == torch.float16
    with pytest.raises(ValueError, match="other texts than the teacher's answers were computed for"):
        cache.check(first_batch(toy[1:], tokenizer))
    with pytest.raises(ValueError, match=r"hidden states \[2, -1\], but the pairs need \[-1\]"):
        TaskDistillation(teacher=classifier_model, cache=cache)


def test_a_step_with_the_cache_is_a_step_with_the_teacher(classifier_model, toy, tokenizer):
    pairs = evenly_paired(2, 4)
    layers = tuple(its for _, its in pairs)
    cache = TeacherCache.compute(
        classifier_model, tokenizer, toy[:8], layers=layers, max_length=48, precision="fp32"
    )
    student, batch = make_student(classifier_model, (0, 3)), first_batch(toy, tokenizer, rows=8)
    with torch.no_grad():
        kept, live = (
            TaskDistillation(teacher=classifier_model, pairs=pairs, cache=which).sums(student, batch)
            for which in (cache, None)
        )
    assert kept.keys() == live.keys()
    for name in live:
        torch.testing.assert_close(kept[name], live[name], rtol=1e-3, atol=1e-3)


# --- runs


def test_distil_trains_a_student_and_leaves_the_teacher_alone(teacher, toy):
    before = weights(teacher.model)
    done = distil(teacher, toy[:192], layers=(0,), config=config(epochs=2), dev=toy[256:], task=TASK)
    assert same(before, weights(teacher.model))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.model.parameters())
    assert done.student.model.config.num_hidden_layers == 1
    assert done.student.labels == teacher.labels
    assert done.retention > 0.85
    assert done.student_metrics == done.run.evaluations[-1].metrics
    assert set(done.run.steps[0].terms) == {"kl", "hard", "cosine"}
    cosine = [step.terms["cosine"] for step in done.run.steps]
    assert mean(cosine[-5:]) < 0.8 * mean(cosine[:2]), "the hidden states turn towards the teacher's"
    assert 0 < done.teacher_seconds < done.seconds
    assert done.compression.factor > 1
    logits = predict_logits(teacher.model, teacher.tokenizer, toy[256:], max_length=48)
    right = (logits.argmax(1) == [example.label for example in toy[256:]]).mean()
    assert right == done.teacher_metrics["accuracy"]


def test_micro_batches_and_no_cache_change_next_to_nothing(teacher, toy):
    """Also of micro-batches whose padding is trimmed: the answers are looked up by token, not by column."""
    losses = []
    for options in ({}, {"cache_bytes": 0}, {"config": config(micro_batch_size=3)}):
        student = make_student(teacher.model, (1,))
        student.config.hidden_dropout_prob = student.config.attention_probs_dropout_prob = 0.0
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        start = replace(teacher, model=student)
        done = distil(teacher, toy[:64], student=start, **{"config": config(), **options})
        assert (done.teacher_seconds == 0) == (options == {"cache_bytes": 0})
        losses.append([step.loss for step in done.run.steps])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[2] == pytest.approx(losses[0], rel=2e-3)


def test_the_triple_loss_trains_through_the_same_loop(masked_lm, toy, tokenizer):
    texts = [Example(example.text) for example in toy[:64]]
    objective = language(masked_lm, tokenizer, positions="masked")
    before = weights(masked_lm)
    student = make_student(masked_lm, (0, 2))
    start = mean_loss(student, tokenizer, texts, objective=objective, max_length=48)
    run = fit(student, tokenizer, texts, config=config(epochs=4), objective=objective)
    end = mean_loss(student, tokenizer, texts, objective=objective, max_length=48)
    assert end["loss"] < 0.8 * start["loss"]
    assert {"kl", "mlm", "cosine"} == run.steps[0].terms.keys()
    assert same(before, weights(masked_lm))


class Killed(Callback):
    def on_step(self, state, record):
        if record.step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["task", "language"])
def test_a_killed_distillation_resumes_to_the_bit(teacher, masked_lm, toy, tokenizer, tmp_path, stage):
    examples = toy[:24] if stage == "task" else [Example(example.text) for example in toy[:24]]
    chosen = config(epochs=2, checkpoint_every=2, batch_size=8)

    def run(folder: str, **options):
        checkpoints = tmp_path / folder
        if stage == "task":
            done = distil(teacher, examples, layers=(1,), config=chosen, checkpoints=checkpoints, **options)
            return weights(done.student.model), done.run
        student = make_student(masked_lm, (0, 3))
        done = fit(
            student,
            tokenizer,
            examples,
            config=chosen,
            objective=language(masked_lm, tokenizer),
            checkpoints=checkpoints,
            **options,
        )
        return weights(student), done

    whole, reference = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", callbacks=[Killed()])
    resumed, record = run("killed", resume=True)
    assert record.resumed_from == 4
    assert same(whole, resumed)
    assert record.order == reference.order
    assert [step.terms for step in record.steps] == [step.terms for step in reference.steps]


def test_a_teacher_of_numbers_is_distilled_by_squared_errors(encoder_folder, toy):
    task = Task("score", "pearson", (), False, "a number")
    scored = [Example(example.text, 4.0 * example.label + 0.5) for example in toy]
    teacher = load(encoder_folder, regression=True)
    fit(teacher.model, teacher.tokenizer, scored[:256], config=config(epochs=4))
    chosen = config(epochs=3, learning_rate=1e-2)
    done = distil(teacher, scored[:256], layers=(0,), config=chosen, dev=scored[256:], task=task)
    assert done.student_metrics["pearson"] > 0.6, done
    objective = RegressionDistillation(teacher=teacher.model)
    batch = next(iter(batches(scored[:4], teacher.tokenizer, batch_size=4, max_length=48, regression=True)))
    student = make_student(teacher.model, (0,))
    with torch.no_grad():
        sums = objective.sums(student, batch)
        own, its = (
            model(batch["input_ids"], batch["attention_mask"]).logits[:, 0]
            for model in (student, teacher.model)
        )
    torch.testing.assert_close(sums["kl"], ((own - its) ** 2).sum())
    torch.testing.assert_close(sums["hard"], ((own - batch["labels"]) ** 2).sum())


def test_distil_refuses_what_cannot_work(teacher, toy):
    with pytest.raises(ValueError, match="both layers and a student"):
        distil(teacher, toy[:8], layers=(0,), student=teacher)
    with pytest.raises(ValueError, match="training example 0 has label 7"):
        distil(teacher, [Example("a", 7), Example("b", 0)])
    with pytest.raises(ValueError, match="dev and task go together"):
        distil(teacher, toy[:8], dev=toy[:8])
    with pytest.raises(ValueError, match="compared is 'first'"):
        Recipe(compared="first")
    with pytest.raises(ValueError, match="no training examples"):
        distil(teacher, [])
    assert every_other_layer(teacher.model) == (0,)


# --- the head


def test_a_head_is_fitted_to_a_frozen_encoder(encoder_folder, tokenizer, toy):
    texts = [example.text for example in toy]
    fitted = fit_mlm_head(encoder_folder, tokenizer, texts, config=config(epochs=4, learning_rate=1e-2))
    assert fitted.uniform == pytest.approx(math.log(fitted.model.config.vocab_size))
    assert fitted.before == pytest.approx(fitted.uniform, abs=0.3), "a fresh head knows nothing"
    assert fitted.unigram < fitted.uniform
    assert fitted.after < fitted.unigram, "and the fitted one more than frequencies"
    encoder = load(encoder_folder, labels=LABELS).model.base_model.state_dict()
    own = fitted.model.base_model.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in own.items())
    assert fitted.model.get_output_embeddings().weight is fitted.model.get_input_embeddings().weight
    assert all(parameter.requires_grad for parameter in fitted.model.parameters())
    with pytest.raises(ValueError, match=r"1 texts with a share of 0\.1"):
        fit_mlm_head(encoder_folder, tokenizer, texts[:1])


# --- what was published


def test_the_published_table_contradicts_itself():
    bert, student = PUBLISHED["BERT-base"], PUBLISHED["DistilBERT"]
    slack = 0.05 + 1e-9  # printed with one decimal
    assert abs(average(student.scores) - student.average) <= slack
    assert abs(average(bert.scores) - bert.average) > slack
    assert abs(implied(bert, "MNLI") - 84.7) < 9 * slack
    corrected = {**bert.scores, "MNLI": 84.7}
    assert abs(average(corrected) - bert.average) <= slack
    assert retention(corrected, student.scores) == pytest.approx(0.9687, abs=5e-4)
    assert retention(corrected, student.scores, without=("WNLI",)) == pytest.approx(0.9619, abs=5e-4)
    assert student.scores["WNLI"] > bert.scores["WNLI"]


def test_averages_over_the_wrong_tasks_are_refused():
    with pytest.raises(ValueError, match="no task 'AX' to leave out"):
        average({"CoLA": 1.0}, without=("AX",))
    with pytest.raises(ValueError, match="no task is left"):
        average({"CoLA": 1.0}, without=("CoLA",))
    with pytest.raises(ValueError, match="only one of the two has a score for RTE"):
        retention({"CoLA": 1.0, "RTE": 1.0}, {"CoLA": 1.0})
