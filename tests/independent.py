"""A second way to the same answers that shares no code with the library's mechanism: embeddings cut by hand."""

import inspect

import torch


def reports_keep(compression):
    """Kept places of all images and videos, in prompt order, as the report tells them."""
    return torch.cat([image.kept for image in compression.report])


def visual_features(model, inputs, modality="image"):
    """What the unpatched model puts in its placeholders, (placeholders, dim) in prompt order."""
    encoder = getattr(model.base_model, f"get_{modality}_features")
    names = inspect.signature(encoder).parameters
    arguments = {name: inputs[name] for name in names if name in inputs}
    encoded = encoder(**arguments, return_dict=True)
    output = encoded.pooler_output
    if output is None:  # Llama 4 projects in its forward
        output = model.multi_modal_projector(encoded.last_hidden_state)
    items = [output] if isinstance(output, torch.Tensor) else output
    return torch.cat([item.flatten(0, -2) for item in items])


def cut_embeddings(model, inputs, keep, *, original_positions=False):
    """(inputs_embeds, attention_mask, position_ids) of the shortened batch, row by row, left padded."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    with torch.no_grad():
        features = {}
        if "pixel_values" in inputs:
            features[model.config.image_token_id] = iter(visual_features(model, inputs))
        if "pixel_values_videos" in inputs:
            features[model.config.video_token_id] = iter(visual_features(model, inputs, "video"))
        embeds = model.get_input_embeddings()(ids)
        # Ovis2 takes the embeddings of its indicator ids from the vision side.
        for number, indicator in enumerate(getattr(model.config, "visual_indicator_token_ids", ())):
            table = model.base_model.visual_embeddings_table.weight
            embeds[ids == indicator] = table[number - len(model.config.visual_indicator_token_ids)]
    taken, rows, places = 0, [], []
    for row in range(len(ids)):
        kept_row, kept_places, position = [], [], 0
        for column in range(ids.shape[1]):
            if not mask[row, column]:
                continue
            if int(ids[row, column]) in features:
                feature = next(features[int(ids[row, column])])
                if keep[taken]:
                    kept_row.append(feature)
                    kept_places.append(position)
                taken += 1
            else:
                kept_row.append(embeds[row, column])
                kept_places.append(position)
            position += 1
        rows.append(torch.stack(kept_row))
        places.append(torch.tensor(kept_places))
    longest = max(map(len, rows))
    out = torch.zeros(len(rows), longest, embeds.shape[-1])
    out_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    out_places = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, values in enumerate(rows):
        out[row, longest - len(values) :] = values
        out_mask[row, longest - len(values) :] = 1
        out_places[row, longest - len(values) :] = places[row] if original_positions else torch.arange(len(values))
    return out, out_mask, out_places


def cut_call(model, inputs, keep):
    """Keyword arguments of a call of the unpatched model that must answer as the compressed call does.

    Features that enter in several layers (Granite 4 Vision) do not fit into embeddings: there, the full prompt's
    dropped places are masked, which also closes the gaps in its positions.
    """
    if not hasattr(model.config, "deepstack_layer_map"):
        embeds, mask, _ = cut_embeddings(model, inputs, keep)
        return {"inputs_embeds": embeds, "attention_mask": mask}
    mask = inputs["attention_mask"].clone()
    mask[inputs["input_ids"] == model.config.image_token_id] = keep.long()
    return {**inputs, "attention_mask": mask}


def one_row(inputs, row, image_rows):
    """Row `row` of a batch as a batch of its own, without padding."""
    mask = inputs["attention_mask"][row].bool()
    alone = {
        "input_ids": inputs["input_ids"][row][mask][None],
        "attention_mask": inputs["attention_mask"][row][mask][None],
    }
    images = [i for i, r in enumerate(image_rows) if r == row]
    if images:
        alone["pixel_values"], alone["image_sizes"] = inputs["pixel_values"][images], inputs["image_sizes"][images]
    return alone
