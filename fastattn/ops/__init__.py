"""Operations registered with torch.library: schemas, fakes and autograd over the backends' kernels."""
