"""A vision transformer encoder: tokens become tokens. It knows no audio.

SimpleViT (arXiv 2205.01580): pre-norm blocks, no class token, no dropout, no bias on the attention's projections.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from myna.relative import RELATIVE, Positions, Relation


def by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend with two batched matrix products."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def by_sums(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend with products and sums of elements, which a compiler fuses into one kernel when tokens are few."""
    scores = (query.unsqueeze(-2) * key.unsqueeze(-3)).sum(-1) * query.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    return (scores.softmax(-1).unsqueeze(-1) * value.unsqueeze(-3)).sum(-2)


# Flash kernels start a block of 64 or more rows for each head of each sample: a trap when there are 5 tokens
ATTENTION = {"sdpa": F.scaled_dot_product_attention, "products": by_products, "sums": by_sums}


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a sample. `how` names one of `ATTENTION`, all equal."""

    how = "sdpa"

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch token dim"], relation: Relation | None = None
    ) -> Float[Tensor, "batch token dim"]:
        batch, tokens, _ = x.shape
        qkv = self.to_qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, head, token, head_dim)
        attend = ATTENTION[self.how]
        mixed = relation.attend(attend, query, key, value) if relation else attend(query, key, value)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    def __init__(self, dim: int, *, mlp_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, dim)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        return self.down(F.gelu(self.up(self.norm(x))))


class Block(nn.Module):
    def __init__(self, dim: int, *, heads: int, head_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads=heads, head_dim=head_dim)
        self.feed_forward = FeedForward(dim, mlp_dim=mlp_dim)

    def forward(
        self, x: Float[Tensor, "batch token dim"], relation: Relation | None = None
    ) -> Float[Tensor, "batch token dim"]:
        x = x + self.attention(x, relation)
        return x + self.feed_forward(x)


class ViT(nn.Module):
    """A stack of blocks and a final norm. ViT-S: dim 384, depth 12, heads 6, head_dim 64, mlp_dim 1536.

    With relative `positions` the tokens' places are heard inside the attention; with "sincos" they are in the tokens.
    """

    def __init__(
        self, *, dim: int, depth: int, heads: int, head_dim: int, mlp_dim: int, positions: Positions = "sincos"
    ) -> None:
        super().__init__()
        self.relative = RELATIVE[positions](heads=heads, head_dim=head_dim) if positions in RELATIVE else None
        self.blocks = nn.ModuleList(Block(dim, heads=heads, head_dim=head_dim, mlp_dim=mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def attend_by(self, how: str) -> None:
        """Choose the form of attention; the numbers stay the same but for rounding."""
        for block in self.blocks:
            block.attention.how = how

    def forward(
        self, x: Float[Tensor, "batch token dim"], places: Float[Tensor, "#batch token 2"] | None = None
    ) -> Float[Tensor, "batch token dim"]:
        """Encode tokens; `places` are their columns and rows, which relative positions need."""
        relation = self.relative(places) if self.relative is not None else None
        for block in self.blocks:
            x = block(x, relation)
        return self.norm(x)


def forward_flops(*, tokens: int, dim: int, depth: int, heads: int, head_dim: int, mlp_dim: int) -> int:
    """Count the floating-point operations of the matrix products of one sample's forward pass.

    Relative positions add none: a bias is added to scores, a rotation multiplies element by element.
    """
    inner = heads * head_dim
    per_token = 2 * dim * (4 * inner + 2 * mlp_dim) + 4 * tokens * inner
    return depth * tokens * per_token


def parameter_count(module: nn.Module) -> int:
    """Count the trainable numbers of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
