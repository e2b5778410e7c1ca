"""Projections from a student's embedding to each teacher's size, for embedding distillation.

They belong to training, never to the exported student: keep them beside the model, not inside it.
"""

from collections.abc import Mapping

from torch import Tensor, nn


class Projectors(nn.ModuleDict):
    """Teacher name to a linear map; a teacher of any size, the student's own included, gets one.

    Args:
        student_size: E of the student.
        sizes: Teacher name to E of that teacher.
    """

    def __init__(self, student_size: int, sizes: Mapping[str, int]):
        # A module's name may hold no dot; teachers' names may.
        super().__init__(
            {name.replace(".", "_"): nn.Linear(student_size, size) for name, size in sizes.items()}
        )
        if len(self) != len(sizes):
            raise ValueError(f"teacher names collide once dots become underscores: {sorted(sizes)}")
        self.names = tuple(sizes)

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """(B, E) -> name to (B, E of that teacher)."""
        return {name: self[name.replace(".", "_")](embedding) for name in self.names}
