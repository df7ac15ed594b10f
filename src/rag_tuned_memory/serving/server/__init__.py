"""``rtm serve-model``: a small server over the local backend that speaks TGI's and OpenAI's protocol.

It is for laptops and tests, not for production: one process computes and serves, without the kernels, the scheduling
and the isolation of TGI and vLLM. What it answers is held to recordings of a real TGI; ``docs/serve-model.md`` says
where it differs and why. Needs the extras ``local`` and ``serve``.
"""
