"""SGLang's part of a server as a generator: how it is started, paused, and given its weights."""

from array import array
from collections.abc import Mapping

from torch import Tensor

from llamarl.core.records import GenerationRequest, Trajectory
from llamarl.generation.server.client import NAME, About
from llamarl.generation.server.executor import ServerExecutor
from llamarl.generation.server.process import keep_environment
from llamarl.generation.server.weights import check_coverage, with_tied_head
from llamarl.generation.sglang.client import SglangClient, read_completion
from llamarl.generation.sglang.weights import check_digests, count_digests, list_parts, write_folder


class SglangExecutor(ServerExecutor[SglangClient]):
    """Completes prompts by an SGLang server; weights come in a folder. Tried against a fake of its protocol only."""

    program, gives_support = "SGLang", True
    _sent: dict[str, int] | None = None
    """Digests of what was sent last."""

    def build_arguments(self, port: int) -> list[str]:
        """The module that serves, and its arguments."""
        place, dtype = self.place, {"fp32": "float32", "bf16": "bfloat16"}[self.config.precision]
        return [
            *("sglang.launch_server", "--model-path", place.model, "--served-model-name", NAME),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--tp-size", str(place.tp)),
            *("--context-length", str(place.max_model_len), "--max-running-requests", str(self.config.slots)),
            *(["--enable-return-routed-experts"] if self.config.routed_experts else []),
        ]

    def build_environment(self) -> dict[str, str]:
        """The environment of its process."""
        return keep_environment(self.place.threads)

    def connect(self, url: str) -> SglangClient:
        """The client of a server. Raises `ConfigError` if its key is not to be had."""
        return SglangClient(url, self.settings.api_key_env, self._transport)

    async def read_held(self) -> dict[str, list[int]]:
        """Names that the server has, those of the parts where it holds several as one. It tells no shapes."""
        await self.client.post("/abort_request", {"abort_all": True})  # those of a generator that was here before
        return {name: [] for held in await self.client.read_digests(self._seconds) for name in held}

    def select_tensors(self, version: int, tensors: Mapping[str, Tensor], about: About) -> dict[str, Tensor]:
        """What is sent of the published tensors: everything that the server holds, under every name it has there."""
        whole = with_tied_head(tensors, self._held)
        held: dict[str, list[int]] = {part: [] for name in self._held for part in list_parts(name, list(whole))}
        check_coverage(version, whole, held, has_shapes=False)
        return whole

    async def draw(
        self, about: About, name: str, prompt: "array[int]", seed: int, request: GenerationRequest
    ) -> Trajectory:
        """One completion: ids, log-probs and versions as the server drew them."""
        sampling, has_experts = request.sampling, self.config.routed_experts
        answer = await self.client.generate(name, prompt, seed, sampling, self._tokenizer.eos_ids, has_experts)
        return read_completion(answer, prompt, bool(sampling.filters), has_experts)

    async def pause(self) -> None:
        """Stops drawing. What is under way gives up its cache and waits, and so does what is asked meanwhile."""
        await self.client.post("/pause_generation", {"mode": "retract"})

    async def resume(self) -> None:
        """Goes on drawing; SGLang computes its caches anew."""
        await self.client.post("/continue_generation")

    async def send_weights(self, version: int, tensors: Mapping[str, Tensor], about: About) -> None:
        """Lays tensors in a folder, lets the server load it, and checks what changed. Raises `WeightSyncError`."""
        sent, before = count_digests(tensors), await self.client.read_digests(self._seconds)
        with write_folder(tensors, self.settings.weights_folder) as folder:
            await self.client.load(folder, version, self._seconds)
        now = await self.client.read_digests(self._seconds)
        check_digests(version, (self._sent, sent), (before, now))
        self._sent = sent
