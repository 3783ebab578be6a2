"""The quick run of all methods: what it shortens, and what it leaves."""

from bench.methods_quick import prepared


def test_every_method_has_a_quarter_of_its_updates_and_a_shorter_teacher(tmp_path):
    runs = prepared(tmp_path, cores="1")
    experiments, rows = runs.experiments(), runs.shipped.tables["methods"].rows
    for row in rows:
        name = row.experiments[0]
        if not experiments.distilled(name):
            continue
        quick = f"quick-{name}"
        before, after = (experiments.section(each, "distill").with_defaults() for each in (name, quick))
        updates = [[phase["updates"] for phase in each["method"]["phases"]] for each in (before, after)]
        assert updates[1] == [round(number / 4) for number in updates[0]], name
        for each in (before, after):
            for key in ("phases", "stage_updates", "tangent_warmup"):
                each["method"].pop(key, None)
        assert before == after, name
    assert experiments.section("quick-digits-ect", "distill.method").stage_updates == 50
    assert experiments.section("quick-digits-instaflow", "teacher").name == "quick-digits-reflow"
