"""ComfyUI-MagicPortrait: MagicFace, MagicStyle and MagiCapture for ComfyUI."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    from .nodes import MagicPortraitExtension

    return MagicPortraitExtension()
