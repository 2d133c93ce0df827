"""The base of methods that let the model write: a chat over the backbone's weights, and questions asked together."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from llamarl.core.errors import EndpointError
from llamarl.core.sampling import Sampling
from llamarl.factuality.asking import PromptFile
from llamarl.factuality.detectors.method import Method, MethodSettings
from llamarl.generation.chats import Chat, NativeChat, ResamplingChat
from llamarl.models.endpoint import ChatReply

if TYPE_CHECKING:
    from llamarl.factuality.detectors.backbone import Backbone

SLOTS = 32
"""Most answers that the native generator decodes together."""


class AskingSettings(MethodSettings):
    """Settings of the methods that let the model write."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of what the model writes."""


class AskingMethod(Method):
    """A detector that reads what a model writes, greedily.

    Args:
        backbone: the model, which also counts tokens.
        settings: of the method's `Settings`; None: the defaults.
        prompts: prompt files by name; None: the shipped ones.
        threshold: a claim is called factual if its P_factual is above.
        chat: who answers instead of the backbone, such as the model on a server; the caller closes it.
    """

    Settings: ClassVar[type[MethodSettings]] = AskingSettings
    settings: AskingSettings

    def __init__(
        self,
        backbone: "Backbone",
        settings: MethodSettings | None = None,
        prompts: Mapping[str, PromptFile] | None = None,
        threshold: float | None = None,
        *,
        chat: ResamplingChat | None = None,
    ) -> None:
        super().__init__(backbone, settings, prompts, threshold)
        self._given_chat = chat
        self._lock = threading.Lock()  # a generator's batch belongs to one event loop at a time

    @cached_property
    def _chat(self) -> ResamplingChat:
        """The chat that answers; the backbone's weights are copied into a generator when it is first asked."""
        if self._given_chat is not None:
            return self._given_chat
        model: Any = self.backbone.model
        return NativeChat.over(
            model,
            self.backbone.tokenizer,
            name=self.backbone.path,
            precision="bf16" if self.backbone.precision == "bf16" else "fp32",
            slots=SLOTS,
            device=str(model.device),
        )

    async def _ask_all(
        self, name: str, questions: Sequence[Mapping[str, str]], max_tokens: int
    ) -> list[ChatReply | str]:
        """The replies to a prompt filled in with each of some data; equal questions are asked once.

        Returns:
            For each question its reply, or the reason why there is none.
        """
        chat = self._chat.with_sampling(Sampling(max_tokens=max_tokens, temperature=0.0))
        distinct = list(dict.fromkeys(tuple(sorted(data.items())) for data in questions))
        replies = await asyncio.gather(*(self._ask(chat, name, dict(data)) for data in distinct))
        found = dict(zip(distinct, replies, strict=True))
        return [found[tuple(sorted(data.items()))] for data in questions]

    async def _ask(self, chat: Chat, name: str, data: Mapping[str, str]) -> ChatReply | str:
        prompt = self.prompts[name]
        if problem := self.backbone.encode(prompt, **data).problem:
            return problem
        try:
            return await chat.reply(prompt.fill(**data), 0)
        except EndpointError as error:
            return f"no reply: {error}"
