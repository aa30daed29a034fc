"""The peer of on-policy rounds: TRL's DistillationTrainer, which is on-policy, too."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

STEPS, FIRST, BATCH_SIZE = 16, 3, 32


def tokens_a_second(
    student: str, teacher: str, questions: Sequence[str], *, max_tokens: int, on_gpu: bool = False
) -> float:
    """Returns the tokens that the student wrote in a step over the time of the step, after a few
    steps: on a GPU with vLLM beside the trainer, in bf16; else with one thread, in float32."""
    import datasets
    from trl import DistillationConfig, DistillationTrainer

    place: dict[str, Any] = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
    if on_gpu:
        place = {"bf16": True, "use_vllm": True, "vllm_mode": "colocate"}
    else:
        torch.set_num_threads(1)
    dtype = {"dtype": "bfloat16" if on_gpu else "float32"}
    chats = [[{"role": "user", "content": question}] for question in questions]
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=1,
            max_steps=STEPS,
            max_completion_length=max_tokens,
            learning_rate=1e-4,
            beta=0.0,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1_000_000,
            model_init_kwargs=dtype,
            teacher_model_init_kwargs=dtype,
            **place,
        )
        rows = datasets.Dataset.from_dict({"prompt": chats})
        trainer = DistillationTrainer(
            model=student, teacher_model=teacher, args=arguments, train_dataset=rows
        )
        marks: list[tuple[float, int]] = [(time.perf_counter(), 0)]
        plain = trainer.compute_loss

        def counted(model: Any, inputs: dict[str, Any], *more: Any, **options: Any) -> Any:
            found = plain(model, inputs, *more, **options)
            number = int(inputs["completion_mask"].sum())
            marks.append((time.perf_counter(), marks[-1][1] + number))
            return found

        trainer.compute_loss = counted
        trainer.train()
    (start, before), (end, after) = marks[FIRST], marks[-1]
    return (after - before) / (end - start)
