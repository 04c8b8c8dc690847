# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A ComfyUI node that draws with a `uso-serve` server: content and style images in, images out.

Copy this file into ComfyUI/custom_nodes. It needs nothing but what ComfyUI has.
"""

import base64
import http.client
import io
import json
import os
import urllib.error
import urllib.request

import numpy as np
import torch
from PIL import Image


class USOServer:
    """Draw a content image in a style, from a prompt, on a server."""

    CATEGORY = "api node/image"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "USO on a uso-serve server. The key, if the server needs one, is in the variable USO_API_KEY."

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """Return the node's inputs, as ComfyUI reads them."""
        number = lambda default, low, high, step: ("FLOAT", {"default": default, "min": low, "max": high, "step": step})
        return {
            "required": {
                "server": ("STRING", {"default": "http://127.0.0.1:8000"}),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
            },
            "optional": {
                "content": ("IMAGE",),
                "style": ("IMAGE", {"tooltip": "a batch is several styles"}),
                "image": ("IMAGE", {"tooltip": "an image to edit"}),
                "mask": ("MASK", {"tooltip": "what of that image is drawn anew"}),
                "width": ("INT", {"default": 0, "min": 0, "max": 8192, "step": 16, "tooltip": "0: the server's"}),
                "height": ("INT", {"default": 0, "min": 0, "max": 8192, "step": 16}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the server's"}),
                "guidance": number(0.0, 0.0, 100.0, 0.1),
                "content_strength": number(1.0, 0.0, 10.0, 0.05),
                "style_strength": number(1.0, 0.0, 10.0, 0.05),
                "strength": number(0.75, 0.0, 1.0, 0.05),
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
                "adapters": ("STRING", {"default": "", "tooltip": "names on the server, such as ink=0.8, felt"}),
                "images": ("INT", {"default": 1, "min": 1, "max": 64}),
                "timeout": ("INT", {"default": 600, "min": 1, "max": 86400, "tooltip": "seconds"}),
            },
        }

    def draw(
        self,
        server,
        prompt,
        seed,
        content=None,
        style=None,
        image=None,
        mask=None,
        width=0,
        height=0,
        steps=0,
        guidance=0.0,
        content_strength=1.0,
        style_strength=1.0,
        strength=0.75,
        negative_prompt="",
        adapters="",
        images=1,
        timeout=600,
    ) -> tuple:
        """Return the images as float32 [n, height, width, 3] in 0..1, as ComfyUI has them.

        Raises:
          RuntimeError: the server cannot be reached, or refuses; the message is its sentence.
        """
        values = {"prompt": prompt, "seed": seed, "n": images, "negative_prompt": negative_prompt or None}
        values |= {"width": width or None, "height": height or None, "num_steps": steps or None}
        values |= {"guidance": guidance or None, "adapters": _adapters(adapters) or None}
        if content is not None:
            values |= {"content": [_encoded(one) for one in content], "content_strength": content_strength}
        if style is not None:
            values |= {"styles": [_encoded(one) for one in style], "style_strength": style_strength}
        if image is not None:
            values |= {"image": _encoded(image[0]), "strength": strength}
            if mask is not None:
                values["mask"] = _encoded(mask.reshape(-1, *mask.shape[-2:])[0][..., None].expand(-1, -1, 3))
        answer = _post(f"{server.rstrip('/')}/v1/images/generations", values, timeout)
        made = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).convert("RGB") for one in answer["data"]]
        return (torch.from_numpy(np.stack([np.asarray(one, np.float32) / 255 for one in made])),)


def _encoded(pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray((255 * pixels).round().clamp(0, 255).byte().cpu().numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _adapters(text: str) -> dict[str, float]:
    pairs = (one.partition("=") for one in text.split(",") if one.strip())
    try:
        return {name.strip(): float(strength or 1) for name, _, strength in pairs}
    except ValueError:
        raise RuntimeError(f"adapters must be names with strengths, such as ink=0.8, felt, not {text!r}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, so that the key goes to no other server."""

    def redirect_request(self, *_):
        """Refuse."""


def _post(address: str, values: dict, timeout: float) -> dict:
    body = json.dumps({name: value for name, value in values.items() if value is not None}).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("USO_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(address, body, headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        try:
            sentence = json.loads(error.read())["error"]["message"]
        except (ValueError, KeyError, TypeError):
            sentence = f"status {error.code}"
        raise RuntimeError(f"{address}: {sentence}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise RuntimeError(f"{address} cannot be reached: {getattr(error, 'reason', error)}") from None


NODE_CLASS_MAPPINGS = {"USOServer": USOServer}
NODE_DISPLAY_NAME_MAPPINGS = {"USOServer": "USO (uso-serve)"}
