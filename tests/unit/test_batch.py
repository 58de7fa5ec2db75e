"""A prompts file line by line, the folder of a batch, and who makes what: without a model."""

import json

import pytest

from jano_dist import UserError, load_config
from jano_dist.batch import BatchFolder, Work, read_plan
from jano_dist.target import unfinished

RUN = '{"versions": {"jano_dist": "0"}, "seconds": {"total": 2.5}}'


def configure(changes):
    return load_config(
        "wan-tiny", overrides={"sampling.seed": 7, "sampling.negative_prompt": "no", **changes}
    )


@pytest.fixture
def plan_of(tmp_path):
    """`plan_of(*lines)`: the plan of a .jsonl file with these lines."""

    def read(*lines, name="prompts.jsonl", skip_bad=False):
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts), encoding="utf-8")
        return read_plan(path, configure, skip_bad=skip_bad)

    return read


def shown(plan):
    return [(job.id, job.line, job.prompt, job.seed, job.negative_prompt) for job in plan.jobs]


class TestPromptsFile:
    def test_text(self, plan_of):
        plan, problems = plan_of(" a red ball\r", "", "a “blue” box\u2028", name="prompts.txt")
        assert shown(plan) == [("0001", 1, "a red ball", 7, "no"), ("0003", 3, "a “blue” box", 7, "no")]
        assert problems == []

    def test_lines_of_json(self, plan_of):
        plan, _ = plan_of(
            "\ufeff" + json.dumps({"prompt": "a"}),
            {"prompt": "b", "seed": 3, "negative_prompt": "", "id": "B-1.x"},
            "  ",
            {"prompt": "c\u2028d", "sampling.steps": 20, "sampling.seed": 0},
            {"prompt": "e", "video.frames": 5, "policy.name": "full"},
            {"prompt": "f", "sampling.steps": 20, "sampling.shift": None},
            {"prompt": "g", "sampling.steps": 20, "seed": 1},
        )
        assert shown(plan) == [
            ("0001", 1, "a", 7, "no"), ("B-1.x", 2, "b", 3, ""), ("0004", 4, "c\u2028d", 0, "no"),
            ("0005", 5, "e", 7, "no"), ("0006", 6, "f", 7, "no"), ("0007", 7, "g", 1, "no"),
        ]  # fmt: skip
        assert [job.config for job in plan.jobs] == [0, 0, 1, 2, 3, 1]
        assert [config.sampling.steps for config in plan.configs] == [50, 20, 50, 20]
        assert [config.policy.name for config in plan.configs] == ["jano", "jano", "full", "jano"]
        assert plan.configs[2].video.frames == 5

    def test_images_of_lines_alone(self, tmp_path):
        """What the command line lacks may be in every line."""

        def needing_an_image(changes):
            if "sampling.image" not in changes:
                raise UserError("give an image")
            return configure(changes)

        path = tmp_path / "prompts.jsonl"
        lines = [{"prompt": "a", "image": "a.png"}, {"prompt": "b", "image": "b.png"}]
        path.write_text("\n".join(map(json.dumps, lines)))
        plan, _ = read_plan(path, needing_an_image, skip_bad=False)
        assert [plan.configs[job.config].sampling.image for job in plan.jobs] == ["a.png", "b.png"]
        path.write_text("\n".join(map(json.dumps, [*lines, {"prompt": "c"}])))
        for skip_bad in (False, True):  # not of one line, so nothing goes on without it
            with pytest.raises(UserError, match=r"^give an image$"):
                read_plan(path, needing_an_image, skip_bad=skip_bad)

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("{", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ('"a red ball"', "no JSON object"),
            ({}, "no prompt"),
            ({"seed": 1}, "no prompt"),
            ({"prompt": ""}, "the prompt is empty"),
            ({"prompt": 3}, "should be text"),
            ('{"prompt": "\\ud800"}', "not valid UTF-8"),
            ({"prompt": "a", "seed": -1}, "sampling.seed should be greater than or equal to 0"),
            ({"prompt": "a", "seed": "1"}, "sampling.seed should be a valid integer"),
            ({"prompt": "a", "seed": True}, "sampling.seed should be"),
            ({"prompt": "a", "seed": None}, "seed is null"),
            ({"prompt": "a", "negative_prompt": 1}, "sampling.negative_prompt should be"),
            ({"prompt": "a", "seed": 1, "sampling.seed": 1}, "sets sampling.seed twice"),
            ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' twice"),
            ({"prompt": "a", "sede": 1}, "unknown key 'sede'"),
            ({"prompt": "a", "sampling.stepps": 1}, "did you mean 'sampling.steps'"),
            ({"prompt": "a", "sampling.steps": 0}, "sampling.steps should be"),
            ('{"prompt": "a", "sampling.guidance": NaN}', "sampling.guidance should be a finite number"),
            ({"prompt": "a", "model.name": "x"}, "model.name is the same for the whole batch"),
            ({"prompt": "a", "mesh.cfg": 2}, "mesh.cfg is the same"),
            ({"prompt": "a", "runtime": {}}, "runtime is the same"),
            ({"prompt": "a", "id": 3}, "the id 3 names no folder"),
            ({"prompt": "a", "id": ""}, "names no folder"),
            ({"prompt": "a", "id": "../x"}, "names no folder"),
            ({"prompt": "a", "id": "x/y"}, "names no folder"),
            ({"prompt": "a", "id": ".x"}, "names no folder"),
            ({"prompt": "a", "id": "-x"}, "names no folder"),
            ({"prompt": "a", "id": "ä"}, "names no folder"),
            ({"prompt": "a", "id": "x" * 101}, "names no folder"),
            ({"prompt": "a", "id": "x\n"}, "names no folder"),
            ({"prompt": "a", "id": "x.jano-dist-new"}, "names no folder"),
            ({"prompt": "a", "id": "Logs"}, "a file of the batch itself"),
            ({"prompt": "a", "id": "results.jsonl"}, "a file of the batch itself"),
            ({"prompt": "a", "id": "First"}, "is that of line 1, too"),
        ],
    )  # fmt: skip
    def test_bad_line(self, plan_of, tmp_path, line, words):
        good = {"prompt": "a", "id": "first"}
        with pytest.raises(UserError, match="--skip-bad") as caught:
            plan_of(good, "", line, good | {"id": "last"})
        assert str(caught.value).startswith(f"{tmp_path / 'prompts.jsonl'}, line 3: ")
        assert words in str(caught.value)
        plan, problems = plan_of(good, "", line, good | {"id": "last"}, skip_bad=True)
        assert [job.id for job in plan.jobs] == ["first", "last"]
        (problem,) = problems
        assert problem.startswith(f"{tmp_path / 'prompts.jsonl'}, line 3: ")
        assert words in problem

    def test_bytes_that_are_no_text(self, tmp_path):
        path = tmp_path / "prompts.txt"
        path.write_bytes(b"a\n\xff\nb")
        with pytest.raises(UserError, match="line 2: it is not valid UTF-8"):
            read_plan(path, configure, skip_bad=False)
        plan, _ = read_plan(path, configure, skip_bad=True)
        assert [job.prompt for job in plan.jobs] == ["a", "b"]

    @pytest.mark.parametrize(("name", "words"), [("p.csv", "no prompts file"), ("p", "no prompts file")])
    def test_no_prompts_file(self, plan_of, name, words):
        with pytest.raises(UserError, match=words):
            plan_of("a", name=name)

    def test_not_there(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_plan(tmp_path / "p.txt", configure, skip_bad=True)

    def test_nothing_in_it(self, plan_of):
        with pytest.raises(UserError, match="has no prompt"):
            plan_of("", " ", name="p.txt")
        with pytest.raises(UserError, match="has no good line"):
            plan_of("{", skip_bad=True)


@pytest.fixture
def three(plan_of):
    return plan_of({"prompt": "a"}, {"prompt": "b", "seed": 1}, {"prompt": "c", "sampling.steps": 20})[0]


@pytest.fixture
def folder(tmp_path, three):
    made = BatchFolder(tmp_path / "x" / "out")
    made.begin(three)
    return made


def finish(folder, job):
    folder.run(job).mkdir()
    (folder.run(job) / "run.json").write_text(RUN)


class TestFolder:
    def test_read_back(self, folder, three):
        assert folder.read() == three

    def test_more_jobs_may_come(self, folder, plan_of):
        lines = {"prompt": "a"}, {"prompt": "b", "seed": 1}, {"prompt": "c", "sampling.steps": 20}
        more, _ = plan_of(*lines, {"prompt": "d"})
        folder.begin(more)
        assert folder.read() == more

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ({"prompt": "x", "seed": 1}, 'for 0002 the prompt "b", not "x"'),
            ({"prompt": "b"}, "for 0002 the sampling.seed 1, not 7"),
            ({"prompt": "b", "seed": 1, "video.frames": 5}, "for 0002 the video.frames 17, not 5"),
            ({"prompt": "b", "seed": 1, "id": "x"}, "has a job 0002, which is not in the prompts file"),
        ],
    )
    def test_another_batch(self, folder, plan_of, three, line, words):
        other, _ = plan_of({"prompt": "a"}, line, {"prompt": "c", "sampling.steps": 20})
        with pytest.raises(UserError, match="folder of another batch") as caught:
            folder.begin(other)
        assert words in str(caught.value)
        assert folder.read() == three

    def test_where_it_is_made_may_change(self, folder, three):
        configs = tuple(
            config.model_copy(update={"runtime": config.runtime.model_copy(update={"recoveries": 9})})
            for config in three.configs
        )
        folder.begin(type(three)(configs, three.jobs))
        assert folder.read().configs[0].runtime.recoveries == 9

    @pytest.mark.parametrize("content", ["{", "[]", '{"jano_dist_batch": 2}', "{}"])
    def test_no_folder_of_a_batch(self, tmp_path, three, content):
        path = tmp_path / "mine"
        path.mkdir()
        BatchFolder(path).begin(three)  # an empty one will do
        (path / "batch.json").write_text(content)
        with pytest.raises(UserError, match="not the folder of a batch"):
            BatchFolder(path).begin(three)
        assert (path / "batch.json").read_text() == content

    def test_a_users_folder_or_file(self, tmp_path, three):
        for path in (tmp_path / "mine", tmp_path / "file"):
            (tmp_path / "mine").mkdir(exist_ok=True)
            (tmp_path / "mine" / "photo").write_text("")
            (tmp_path / "file").write_text("")
            with pytest.raises(UserError, match="not the folder of a batch"):
                BatchFolder(path).begin(three)

    def test_killed_before_it_was_begun(self, tmp_path, three):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "batch.json.unfinished").write_text("{")
        BatchFolder(tmp_path / "out").begin(three)
        assert BatchFolder(tmp_path / "out").read() == three

    def test_a_line_that_was_cut_off(self, folder, three):
        first, second, _ = three.jobs
        folder.note_failure(first, {"sentence": "one", "aside": False})
        with (folder.path / "failures.jsonl").open("ab") as file:
            file.write(b'{"id": "0001", "sent')
        folder.note_failure(second, {"sentence": "two", "aside": False})
        folder.note_failure(first, {"sentence": "three", "aside": False})
        sentences = {name: [row["sentence"] for row in rows] for name, rows in folder.failures().items()}
        assert sentences == {"0001": ["one", "three"], "0002": ["two"]}

    def test_results(self, folder, three):
        _, second, third = three.jobs
        finish(folder, third)
        for sentence in ("one", "two", "three"):
            folder.note_failure(second, {"sentence": sentence, "aside": sentence == "three"})
        folder.note_failure(third, {"sentence": "four", "aside": False})
        lines = folder.write_results([second, third]).read_text().splitlines()
        video = str(folder.path / "0003" / "video.mp4")
        assert list(map(json.loads, lines)) == [
            {"id": "0002", "prompt": "b", "seed": 1, "status": "set aside", "seconds": None, "path": None,
             "error": "three", "attempts": 3},
            {"id": "0003", "prompt": "c", "seed": 7, "status": "done", "seconds": 2.5, "path": video,
             "error": None, "attempts": 2},
        ]  # fmt: skip


class TestWork:
    def test_in_order(self, folder, three):
        work = Work(folder, three)
        first, second = work.take(), work.take()
        assert (first, second) == three.jobs[:2]
        work.give_back(first)
        assert work.take() == first
        finish(folder, second)
        work.finish(second)
        assert (work.done, work.left) == ([second], [first, three.jobs[2]])
        assert work.take() == three.jobs[2]
        assert work.take() is None
        assert len(work.left) == 2

    def test_goes_on(self, folder, three):
        first, second, third = three.jobs
        finish(folder, second)
        work = Work(folder, three)
        assert (work.done, work.left) == ([second], [first, third])

    def test_set_aside_after_three_also_of_several_drivers(self, folder, three):
        for number in (1, 2, 3):
            work = Work(folder, three)
            job = work.take()
            assert job == three.jobs[0]
            assert work.fail(job, {"sentence": f"{number}", "rank": 0}, final=False) is (number == 3)
            assert [row["attempt"] for row in work.failures(job)] == list(range(1, number + 1))
        for same in (work, Work(folder, three)):
            assert same.aside == [three.jobs[0]]
            assert same.left == list(three.jobs[1:])
        assert work.take() == three.jobs[1]

    def test_set_aside_at_once_when_the_next_attempt_would_fail_too(self, folder, three):
        work = Work(folder, three)
        job = work.take()
        unfinished(folder.run(job)).mkdir()
        (unfinished(folder.run(job)) / "step-000004.snapshot").write_text("")
        assert work.fail(job, {"sentence": "frames"}, final=True)
        assert not unfinished(folder.run(job)).exists()
