"""What each kind of generator can do: the table of docs/guides/generate-with-vllm.md, and what its tests hold to."""

from llamarl.core.config import Config


class Capabilities(Config):
    """One kind of generator."""

    kind: str
    """Kind"""
    chosen_by: str
    """Chosen by"""
    models: str
    """Models"""
    devices: str
    """Devices"""
    precisions: tuple[str, ...]
    """Precisions"""
    log_probs: str
    """Log-probs of the sampled distribution"""
    versions: str
    """A version for each token"""
    seeds: str
    """Seeds"""
    on_update: str
    """Completions under way at an update"""
    shares_prompts: str
    """Prompt of a group"""
    parallelism: str
    """Devices that share a completion"""
    stops: str
    """Ends"""
    filters: str
    """top-k, top-p, min-p"""
    trains_filtered: str
    """What they drew trains"""
    experts: str
    """Experts of each token (router replay)"""
    weights: str
    """Weights come by"""
    proof: str
    """Proof before the next token leaves"""
    loss: str
    """A failed update"""


NATIVE = Capabilities(
    kind="native",
    chosen_by='`kind = "native"`, the default',
    models="Llama, Qwen2, Qwen3, Mistral",
    devices="CPU, CUDA, MPS",
    precisions=("fp32", "bf16", "int8"),
    log_probs="yes",
    versions="yes",
    seeds="one a completion; texts do not depend on who else is in the batch, up to rounding",
    on_update='go on; cache computed anew, or kept (`on_update = "keep"`)',
    shares_prompts="read once",
    parallelism="one",
    stops="end tokens, stop strings",
    filters="yes",
    trains_filtered="yes: the tokens left are recorded",
    experts="`generator.routed_experts`; tried: Qwen3-MoE",
    weights="memory, or shared memory between processes",
    proof="checksums of what it holds (fp32), every tensor compared, probe",
    loss="nothing is served until a good one",
)
TRANSFORMERS = Capabilities(
    kind="transformers",
    chosen_by="native, where the model is of another architecture",
    models="every causal language model of transformers",
    devices="CPU, CUDA, MPS",
    precisions=("fp32", "bf16"),
    log_probs="yes",
    versions="yes",
    seeds="as native",
    on_update="go on; cache computed anew",
    shares_prompts="read once",
    parallelism="one",
    stops="end tokens, stop strings",
    filters="yes",
    trains_filtered="as native",
    experts="no",
    weights="memory, or shared memory between processes",
    proof="as native",
    loss="nothing is served until a good one",
)
VLLM = Capabilities(
    kind="vllm",
    chosen_by='`kind = "vllm"`',
    models="what vLLM 0.32 runs; tried: Llama",
    devices="CPU, CUDA; tried: CPU",
    precisions=("fp32", "bf16"),
    log_probs="yes (`processed_logprobs`)",
    versions="yes",
    seeds="one a completion; equal seeds gave equal texts where the batch was equal",
    on_update="go on; cache computed anew",
    shares_prompts="by vLLM's prefix cache, in whole blocks (128 tokens on a CPU)",
    parallelism="`tp` workers; tried: one",
    stops="end tokens, stop strings",
    filters="yes",
    trains_filtered="by heart only (RAFT, IBPO): its HTTP routes do not tell the tokens left",
    experts="where the server gives them; not tried",
    weights="gloo",
    proof="names sent cover names held, CRC of what each worker received, probe",
    loss="the server is replaced, its groups start over",
)
SGLANG = Capabilities(
    kind="sglang",
    chosen_by='`kind = "sglang"`; tried on a fake only, never on a real server',
    models="what SGLang 0.5.23 runs",
    devices="CUDA",
    precisions=("fp32", "bf16"),
    log_probs="yes",
    versions="yes",
    seeds="one a completion, with `--enable-deterministic-inference`",
    on_update="go on; cache computed anew",
    shares_prompts="by SGLang's radix cache",
    parallelism="`tp` workers",
    stops="end tokens, stop strings",
    filters="yes",
    trains_filtered="yes: the server tells the tokens left",
    experts="`generator.routed_experts`",
    weights="a folder of safetensors",
    proof="names sent cover names held, the server's digests change as the weights do, probe",
    loss="the server is replaced, its groups start over",
)
KINDS = (NATIVE, TRANSFORMERS, VLLM, SGLANG)
